"""What a page holds, as a browser would find it."""

from __future__ import annotations

from html.parser import HTMLParser

LOADING = {"src", "href", "srcset", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """Cells of each table by its id, pictures, and whatever a browser would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: list[dict[str, str]] = []
        self.titles: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = [""]
        self.text = ""
        self._table = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attributes}
        self.fetched += [
            value for name, value in values.items() if name in LOADING and value[:1] != "#" and value[:5] != "data:"
        ]
        if tag == "svg":
            self.pictures.append(values)
        if tag == "table":
            self._table = values["id"]
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags[-1] == "h3":
            self.titles.append(data)
            self.tags.append("")
        if self._table and self.tables[self._table] and self.tables[self._table][-1]:
            self.tables[self._table][-1][-1] += data.strip()
