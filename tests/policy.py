"""What the Content-Security-Policy of a page allows, and what the page holds."""

import base64
import hashlib
from html.parser import HTMLParser


class Policy(HTMLParser):
    """The rules of a page; hashes of its inline styles and scripts; attributes that no hash can allow."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.rules: dict[str, list[str]] = {}
        self.hashes: dict[str, list[str]] = {"style": [], "script": []}
        self.odd_attributes: list[str] = []
        self.before: list[str] = []  # what is inline before the policy, and so is not under it
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.odd_attributes += [name for name in found if name == "style" or name.startswith("on")]
        if found.get("http-equiv") == "Content-Security-Policy":
            assert not self.rules
            for rule in str(found["content"]).split("; "):
                name, *allowed = rule.split(" ")
                self.rules[name] = allowed
        # A data block is not run.
        self._inside = tag if tag in self.hashes and found.get("type") != "application/json" else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            digest = hashlib.sha256(data.encode()).digest()
            self.hashes[self._inside].append(f"'sha256-{base64.b64encode(digest).decode()}'")
            self.before += [] if self.rules else [self._inside]

    @property
    def allows_exactly_what_is_there(self) -> bool:
        """Whether every style and script is covered by its hash, pictures are data, and nothing else is allowed."""
        wanted = {name: ["'none'"] for name in ("default-src", "base-uri", "form-action")} | {"img-src": ["data:"]}
        wanted |= {f"{name}-src": hashes for name, hashes in self.hashes.items() if hashes}
        return self.rules == wanted and not self.odd_attributes and not self.before
