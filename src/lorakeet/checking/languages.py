"""Roughly which scripts and languages a text is written in; a glance at the mix, not a classifier.

data in: text → out: names. Scripts come from Unicode's character names, languages from a few very frequent words.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

_WORDS = {
    "English": "the and is of to that it you for with this are was have not",
    "German": "der die und das ist nicht ein eine zu mit den von für auf ich",
    "French": "le les des est une et dans que pour qui pas vous sur avec du",
    "Spanish": "el los las que es una por con para del se su como más pero",
    "Italian": "il che di è una per non con della sono gli come questo anche nel",
    "Portuguese": "o os que é uma não para com do da em por mais você são",
    "Dutch": "de het een en van niet dat is op voor met zijn maar ook je",
}
_LANGUAGES: dict[str, set[str]] = {name: set(words.split()) for name, words in _WORDS.items()}
_SAMPLE_CHARS = 2000
_WORD = re.compile(r"[^\W\d_]+")


@lru_cache(maxsize=1 << 16)
def _script(char: str) -> str:
    name = unicodedata.name(char, "UNKNOWN").split(" ")[0].title()
    return {"Cjk": "Han"}.get(name, name)


def count_scripts(text: str) -> Counter[str]:
    """Count the letters of each script at the beginning of a text."""
    scripts: Counter[str] = Counter()
    for char, count in Counter(text[:_SAMPLE_CHARS]).items():
        if char.isalpha():
            scripts[_script(char)] += count
    return scripts


def guess_language(text: str, scripts: Counter[str]) -> str:
    """Name the language of a text, or its script where that says more, or "unknown"."""
    if not scripts:
        return "unknown"
    script = scripts.most_common(1)[0][0]
    if script != "Latin":
        return script
    words = Counter(_WORD.findall(text[:_SAMPLE_CHARS].lower()))
    hits = {name: sum(words[word] for word in known) for name, known in _LANGUAGES.items()}
    best = max(hits, key=lambda name: hits[name])
    return best if hits[best] >= max(1, words.total() // 20) else "unknown"
