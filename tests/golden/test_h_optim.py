"""Golden case h: the learning-rate schedule; its parameter groups belong to a recipe not written yet."""

from __future__ import annotations

from llm2clip.train.run import learning_rate_factor


def test_learning_rate_schedule(golden):
    case = golden.case("h_optim")
    golden.note("parameter groups not covered yet")
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
