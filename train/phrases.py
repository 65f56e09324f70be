"""Phrases in several languages: how people ask for a picture, and how a scene is put into words."""

from __future__ import annotations

QUERY_FRAMES: dict[str, tuple[str, ...]] = {
    "en": (
        "a picture of {}", "show me {}", "{} please", "i am looking for {}", "something with {}", "a drawing of {}",
        "an icon for {}", "find {}", "it reminds me of {}", "a symbol of {}", "something about {}", "the one with {}",
    ),
    "zh": ("一张{}的图片", "给我看{}", "我想找{}", "和{}有关的东西", "{}的图标", "表示{}的图", "跟{}有关"),
    "es": ("una imagen de {}", "muéstrame {}", "busco {}", "algo con {}", "un dibujo de {}", "algo relacionado con {}"),
    "ar": ("صورة {}", "أرني {}", "أبحث عن {}", "شيء له علاقة بـ {}", "رسم {}", "رمز {}"),
    "ja": ("{}の絵", "{}の写真を見せて", "{}を探しています", "{}に関するもの", "{}のアイコン", "{}っぽいもの"),
    "hi": ("{} की तस्वीर", "मुझे {} दिखाओ", "मैं {} ढूँढ रहा हूँ", "{} से जुड़ी चीज़", "{} का चित्र"),
    "de": ("ein bild von {}", "zeig mir {}", "ich suche {}", "etwas mit {}", "ein symbol für {}", "etwas zum thema {}"),
    "fr": ("une image de {}", "montre-moi {}", "je cherche {}", "quelque chose avec {}", "un dessin de {}"),
    "pt": ("uma imagem de {}", "mostre-me {}", "procuro {}", "algo com {}", "um desenho de {}"),
    "ru": ("картинка {}", "покажи {}", "я ищу {}", "что-то про {}", "рисунок {}", "значок {}"),
    "ko": ("{} 그림", "{} 사진을 보여줘", "{} 찾고 있어요", "{}와 관련된 것", "{} 아이콘"),
    "it": ("un'immagine di {}", "mostrami {}", "cerco {}", "qualcosa con {}", "un disegno di {}"),
    "tr": ("{} resmi", "bana {} göster", "{} arıyorum", "{} ile ilgili bir şey"),
    "vi": ("hình ảnh {}", "cho tôi xem {}", "tôi đang tìm {}", "thứ liên quan đến {}"),
    "id": ("gambar {}", "tunjukkan {}", "saya mencari {}", "sesuatu tentang {}"),
    "nl": ("een plaatje van {}", "laat me {} zien", "ik zoek {}", "iets met {}"),
    "pl": ("obrazek {}", "pokaż mi {}", "szukam {}", "coś z {}"),
    "uk": ("зображення {}", "покажи {}", "я шукаю {}", "щось про {}"),
    "fa": ("تصویر {}", "به من {} نشان بده", "دنبال {} هستم"),
    "he": ("תמונה של {}", "תראה לי {}", "אני מחפש {}", "משהו עם {}"),
}
"""Frames around a name or keyword."""

PAIR_JOINS: dict[str, tuple[str, ...]] = {
    "en": ("{} and {}", "{} with {}", "{} {}", "{}, {}"),
    "zh": ("{}和{}", "{}的{}", "{}{}", "有{}的{}"),
    "es": ("{} y {}", "{} con {}", "{} {}"),
    "ar": ("{} و{}", "{} مع {}", "{} {}"),
    "ja": ("{}と{}", "{}の{}", "{}{}"),
    "hi": ("{} और {}", "{} {}", "{} वाला {}"),
    "de": ("{} und {}", "{} mit {}", "{} {}"),
    "fr": ("{} et {}", "{} avec {}", "{} {}"),
    "pt": ("{} e {}", "{} com {}", "{} {}"),
    "ru": ("{} и {}", "{} с {}", "{} {}"),
    "ko": ("{}와 {}", "{} {}"),
}
"""Ways to say two keywords of one picture; other languages use a blank."""

CELLS = 9
"""Places of a scene: a grid of three rows by three columns, counted from the top left."""

COLOURS: tuple[tuple[int, int, int], ...] = (
    (255, 255, 255), (190, 215, 245), (250, 240, 170), (250, 205, 215), (200, 235, 200), (220, 220, 220),
    (225, 205, 240), (250, 215, 170),
)
"""Background colours of scenes, RGB."""

COLOUR_NAMES: dict[str, tuple[str, ...]] = {
    "en": ("white", "light blue", "pale yellow", "pink", "light green", "grey", "lilac", "orange"),
    "zh": ("白色", "浅蓝色", "浅黄色", "粉色", "浅绿色", "灰色", "淡紫色", "橙色"),
    "es": ("blanco", "celeste", "amarillo claro", "rosa", "verde claro", "gris", "lila", "naranja"),
    "de": ("weißem", "hellblauem", "blassgelbem", "rosa", "hellgrünem", "grauem", "lila", "orangem"),
    "fr": ("blanc", "bleu clair", "jaune pâle", "rose", "vert clair", "gris", "lilas", "orange"),
    "ja": ("白", "水色", "薄い黄色", "ピンク", "黄緑", "灰色", "薄紫", "オレンジ"),
    "ar": ("بيضاء", "زرقاء فاتحة", "صفراء باهتة", "وردية", "خضراء فاتحة", "رمادية", "ليلكية", "برتقالية"),
    "hi": ("सफ़ेद", "हल्की नीली", "हल्की पीली", "गुलाबी", "हल्की हरी", "स्लेटी", "हल्की बैंगनी", "नारंगी"),
    "ru": ("белом", "голубом", "бледно-жёлтом", "розовом", "светло-зелёном", "сером", "сиреневом", "оранжевом"),
    "ko": ("흰색", "하늘색", "연노란색", "분홍색", "연두색", "회색", "연보라색", "주황색"),
    "pt": ("branco", "azul-claro", "amarelo-claro", "rosa", "verde-claro", "cinza", "lilás", "laranja"),
    "it": ("bianco", "azzurro", "giallo chiaro", "rosa", "verde chiaro", "grigio", "lilla", "arancione"),
}
"""Their names, in the form the openings of the language need."""

OPENINGS: dict[str, tuple[str, ...]] = {
    "en": ("a picture with {n} things on a {colour} background .", "{n} things are shown on {colour} .",
           "this {colour} card shows {n} things ."),
    "zh": ("{colour}背景的图片上有{n}样东西。", "这张{colour}卡片上有{n}样东西。"),
    "es": ("una imagen con {n} cosas sobre fondo {colour} .", "hay {n} cosas sobre un fondo {colour} ."),
    "de": ("ein bild mit {n} dingen auf {colour} grund .", "auf {colour} grund sind {n} dinge zu sehen ."),
    "fr": ("une image avec {n} choses sur un fond {colour} .", "il y a {n} choses sur fond {colour} ."),
    "ja": ("{colour}の背景に{n}個のものがある絵。", "{n}個のものが{colour}の背景に並んでいる。"),
    "ar": ("صورة فيها {n} أشياء على خلفية {colour} .", "على خلفية {colour} نرى {n} أشياء ."),
    "hi": ("{colour} पृष्ठभूमि पर {n} चीज़ों की तस्वीर ।", "इस तस्वीर में {colour} पृष्ठभूमि पर {n} चीज़ें हैं ।"),
    "ru": ("картинка с {n} предметами на {colour} фоне .", "на {colour} фоне видно {n} предметов ."),
    "ko": ("{colour} 배경에 {n}개의 물건이 있는 그림 .", "{n}개의 물건이 {colour} 배경 위에 있다 ."),
    "pt": ("uma imagem com {n} coisas sobre fundo {colour} .", "há {n} coisas num fundo {colour} ."),
    "it": ("un'immagine con {n} cose su sfondo {colour} .", "ci sono {n} cose su uno sfondo {colour} ."),
}
"""First sentences of a scene's caption."""

PLACES: dict[str, tuple[str, ...]] = {
    "en": ("in the top left corner", "at the top in the middle", "in the top right corner", "on the left side",
           "in the center", "on the right side", "in the bottom left corner", "at the bottom in the middle",
           "in the bottom right corner"),
    "zh": ("左上角", "上方中间", "右上角", "左边", "正中间", "右边", "左下角", "下方中间", "右下角"),
    "es": ("arriba a la izquierda", "arriba en el medio", "arriba a la derecha", "a la izquierda", "en el centro",
           "a la derecha", "abajo a la izquierda", "abajo en el medio", "abajo a la derecha"),
    "de": ("oben links", "oben in der mitte", "oben rechts", "am linken rand", "genau in der mitte", "am rechten rand",
           "unten links", "unten in der mitte", "unten rechts"),
    "fr": ("en haut à gauche", "en haut au milieu", "en haut à droite", "sur le côté gauche", "au centre",
           "sur le côté droit", "en bas à gauche", "en bas au milieu", "en bas à droite"),
    "ja": ("左上に", "上の真ん中に", "右上に", "左側に", "中央に", "右側に", "左下に", "下の真ん中に", "右下に"),
    "ar": ("في الزاوية العليا اليسرى", "في الأعلى في الوسط", "في الزاوية العليا اليمنى", "على الجانب الأيسر",
           "في المركز", "على الجانب الأيمن", "في الزاوية السفلى اليسرى", "في الأسفل في الوسط",
           "في الزاوية السفلى اليمنى"),
    "hi": ("ऊपर बाएँ कोने में", "ऊपर बीच में", "ऊपर दाएँ कोने में", "बाईं ओर", "ठीक बीच में", "दाईं ओर",
           "नीचे बाएँ कोने में", "नीचे बीच में", "नीचे दाएँ कोने में"),
    "ru": ("в левом верхнем углу", "вверху посередине", "в правом верхнем углу", "слева", "в центре", "справа",
           "в левом нижнем углу", "внизу посередине", "в правом нижнем углу"),
    "ko": ("왼쪽 위에", "위쪽 가운데에", "오른쪽 위에", "왼쪽에", "한가운데에", "오른쪽에", "왼쪽 아래에",
           "아래쪽 가운데에", "오른쪽 아래에"),
    "pt": ("no canto superior esquerdo", "em cima no meio", "no canto superior direito", "do lado esquerdo", "no centro",
           "do lado direito", "no canto inferior esquerdo", "em baixo no meio", "no canto inferior direito"),
    "it": ("in alto a sinistra", "in alto al centro", "in alto a destra", "sul lato sinistro", "proprio in mezzo",
           "sul lato destro", "in basso a sinistra", "in basso al centro", "in basso a destra"),
}
"""The nine places, in the order of the grid."""

ITEMS: dict[str, tuple[str, ...]] = {
    "en": ("{place} there is {name} .", "{name} can be seen {place} .", "{place} you find {name} ."),
    "zh": ("{place}有{name}。", "{name}在{place}。"),
    "es": ("{place} hay {name} .", "{name} está {place} ."),
    "de": ("{place} ist {name} .", "{name} steht {place} ."),
    "fr": ("{place} il y a {name} .", "{name} se trouve {place} ."),
    "ja": ("{place}{name}がある。", "{name}が{place}ある。"),
    "ar": ("{place} يوجد {name} .", "{name} {place} ."),
    "hi": ("{place} {name} है ।", "{name} {place} है ।"),
    "ru": ("{place} {name} .", "{name} находится {place} ."),
    "ko": ("{place} {name} 있다 .", "{name} {place} 있다 ."),
    "pt": ("{place} há {name} .", "{name} está {place} ."),
    "it": ("{place} c'è {name} .", "{name} si trova {place} ."),
}
"""One sentence for one thing; the wordings of one position in the tuples belong together."""

SCENE_LANGUAGES: tuple[str, ...] = tuple(ITEMS)
"""Languages in which scenes are described."""
