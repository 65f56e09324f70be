"""Golden case h: which rate and weight decay each parameter has, and the learning-rate schedule."""

import torch

from llm2clip.train.core.param_groups import GroupConfig, optimiser_groups, place_parameters
from llm2clip.train.core.schedule import learning_rate_factor


def config_of(hyper) -> GroupConfig:
    assert hyper["text_ld"] >= 1 <= hyper["ld"], "layer decay of the tower alone is recorded"
    return GroupConfig(
        visual_lr=hyper["visual_lr"],
        text_lr=hyper["text_lr"],
        lr=hyper["lr"],
        visual_weight_decay=hyper["visual_wd"],
        text_weight_decay=hyper["text_wd"],
        weight_decay=hyper["wd"],
        visual_layer_decay=hyper["visual_ld"],
    )


def test_optimiser_groups_by_parameter(golden):
    case = golden.case("h_optim")
    recorded = case.json("optim.json")
    parameters = recorded["parameters"]
    placed = place_parameters(
        {name: len(entry["shape"]) for name, entry in parameters.items()}, config=config_of(recorded["hyper"])
    )
    for name, entry in parameters.items():
        case.exact(f"tower of {name}", placed[name].tower, entry["tower"])
        case.exact(f"weight decay of {name}", placed[name].weight_decay, entry["weight_decay"])
    scales = [placed[name].lr_scale for name in parameters]
    case.check("lr_scale", scales, [entry["lr_scale"] for entry in parameters.values()], atol=0, rtol=1e-12)
    case.exact("number of groups", len(set(placed.values())), recorded["n_groups"])


def test_optimiser_groups_have_their_peak_rates(golden):
    case = golden.case("h_optim")
    recorded = case.json("optim.json")
    hyper = recorded["hyper"]
    bases = {"visual": hyper["visual_lr"], "text": hyper["text_lr"], "other": hyper["lr"]}
    parameters = {
        name: torch.nn.Parameter(torch.zeros(entry["shape"]))
        for name, entry in recorded["parameters"].items()
    }
    groups = optimiser_groups(parameters.items(), config=config_of(hyper))
    torch.optim.AdamW(groups)
    case.exact("number of groups", len(groups), recorded["n_groups"])
    of = {id(member): group for group in groups for member in group["params"]}
    assert len(of) == len(parameters)
    for name, entry in recorded["parameters"].items():
        group = of[id(parameters[name])]
        case.exact(f"decay of {name}", group["weight_decay"], entry["weight_decay"])
        peak = entry["lr_scale"] * bases[entry["tower"]]
        case.check(f"peak of {name}", group["lr"], peak, atol=0, rtol=1e-12)


def test_learning_rate_factor_follows_the_schedule(golden):
    case = golden.case("h_optim")
    recorded = case.json("optim.json")
    hyper = recorded["hyper"]
    bases = {"visual": hyper["visual_lr"], "text": hyper["text_lr"], "other": hyper["lr"]}
    assert recorded["schedules"]
    for schedule in recorded["schedules"]:
        warmup, total = schedule["warmup"], schedule["total_steps"]
        for row in schedule["rows"]:
            factor = learning_rate_factor(row["step"], warmup=warmup, total=total)
            rates = [factor * group["lr_scale"] * bases[group["tower"]] for group in row["lr_by_group"]]
            expected = [group["lr"] for group in row["lr_by_group"]]
            case.check(f"lr at step {row['step']} of {total}", rates, expected, atol=1e-12, rtol=1e-5)
