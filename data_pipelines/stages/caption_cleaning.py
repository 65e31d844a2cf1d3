"""Caption cleaning of Open-Sora 1.2 (spec 3.2): the form in which its model reads prompts.

The published model learned from captions cleaned like this, so prompts go through `clean` too.
"""

import html
import html.parser
import re
import urllib.parse

import ftfy

_DOMAIN = r"[a-z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_CJK = "\u31c0-\u31ef \u31f0-\u31ff \u3200-\u32ff \u3300-\u33ff \u3400-\u4dbf \u4dc0-\u4dff"
_CJK = [*_CJK.split(), "\u4e00-\u9fff"]
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)

# (pattern, replacement), in order, up to the repair of the encoding and after it
_LINKS = [
    (rf"\b(?:{scheme}(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", "") for scheme in ("https?:", "www:")
]
_BEFORE = [
    (r"@\w+\b", ""),
    *[(f"[{block}]+", "") for block in _CJK],
    (rf"[{_DASHES.replace('-', chr(92) + '-', 1)}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
]
_AFTER = [
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILES})(?:\simages?)?", ""),  # no boundary at the end: "epsilon" becomes "ilon"
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
]
_ENDS = [
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
]


def clean(text: str) -> str:
    """Returns a caption as the published model reads it: two passes of `clean_once`."""
    return clean_once(clean_once(text))


def clean_once(text: str) -> str:
    """One pass: links, marks, codes and advertising go; what is left is lower case.

    It is not idempotent, and it errs: "A dog.It runs" loses "dog.It", which looks like a domain.
    """
    text = urllib.parse.unquote_plus(str(text)).strip().lower().replace("<person>", "person")
    text = _replace(text, _LINKS)
    text = _replace(_html_text(text), _BEFORE)
    if len(re.findall("[-_]", text)) > 3:
        text = re.sub("[-_]", " ", text)
    text = _replace(repair(text), _AFTER)
    return _replace(text, _ENDS).strip()


def repair(text: str) -> str:
    """Mends a wrongly decoded text and resolves HTML entities, twice."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def _replace(text: str, rules) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


class _Text(html.parser.HTMLParser):
    """Collects what a page shows; scripts and style sheets are no text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts, self.hidden = [], 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style") and self.hidden > 0

    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(data)


def _html_text(text: str) -> str:
    parser = _Text()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)
