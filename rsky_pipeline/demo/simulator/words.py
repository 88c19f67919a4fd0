"""Texts as people write them, and texts that break careless programs."""

import random

_SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "coffee first, then the release notes", "the heron is back at the pond",
        "anyone else rebuilding an old synth this winter?", "finished the book on the night bus",
        "new bread recipe, slightly burnt, no regrets", "that bug was a missing comma. again.",
    ),
    "pt": ("bom dia com pão na chapa", "amanhã tem feira na praça", "não é só saudade, é fome"),
    "de": ("Grüße aus der Straßenbahn", "heute früh war der See zugefroren", "Käsekuchen hilft"),
    "ja": ("おはようございます", "今日の夕焼けがきれいだった", "新しい本を読み始めました"),
    "ko": ("좋은 아침입니다", "오늘은 비가 와요"),
    "ar": ("صباح الخير للجميع", "القطار متأخر مرة أخرى"),
    "he": ("בוקר טוב לכולם",),
    "ru": ("снова снег, зато тихо", "доброе утро, коты"),
    "th": ("สวัสดีตอนเช้า",),
}  # fmt: skip
_LANGUAGES = tuple(_SENTENCES)
_WEIGHTS = (60, 12, 6, 10, 3, 3, 1, 3, 2)
_TAGS = ("art", "birds", "música", "gamedev", "写真", "OpenScience", "caturday", "nowplaying")
_EMOJI = ("🦋", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "😭", "🇧🇷", "✨", "🫠")
# Valid texts that find bugs: quoting, escapes, widths, directions, what JSON or SQL may trip over.
_ODD = (
    "", " ", "\n\n\n", "tab\there, back\\slash, \"quotes\", 'single', `tick`", '{"$link": "no"}',
    "null", "\\u0000 spelled out", "a\u0000b", "\u202eright to left\u202c and back",
    "e\u0301 e\u0302", "\ufeffbyte order mark", "\u200b\u200d\u2060", "\x7f\x1b[31mred\x1b[0m\x01",
    "\U0010ffff\ufffe", "𝒳 𝕐 𝖹 astral letters", "%s %(x)s {0} $1 :name ?",
    "'; DROP TABLE post; --", "x" * 240,  # a post may add to it and have no more than 300
)  # fmt: skip
_TITLES = ("Field notes", "Slow news", "Release 2.0", "How we moved house", "Árvores da cidade")


class Writer:
    """Makes texts; the same random numbers give the same texts."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose

    def language(self) -> str:
        """Return a language tag, mostly English."""
        return self._choose.choices(_LANGUAGES, _WEIGHTS)[0]

    def sentence(self, language: str) -> str:
        """Return a sentence in a language, sometimes with an emoji, rarely something odd."""
        draw = self._choose.random()
        if draw < 0.04:
            return self.odd()
        text = self._choose.choice(_SENTENCES[language])
        return f"{text} {self._choose.choice(_EMOJI)}" if draw > 0.7 else text

    def odd(self) -> str:
        """Return a text that is valid and unusual."""
        return self._choose.choice(_ODD)

    def tag(self) -> str:
        """Return a hashtag without its sign."""
        return self._choose.choice(_TAGS)

    def title(self) -> str:
        """Return the title of something linked to."""
        return self._choose.choice(_TITLES)

    def name(self) -> str:
        """Return a display name of at most 20 characters."""
        first = self._choose.choice(("Ana", "Jo", "Mika", "Żaneta", "雪", "Noor", "Пётр", "Sam"))
        return f"{first} {self._choose.choice(_EMOJI)}" if self._choose.random() < 0.3 else first
