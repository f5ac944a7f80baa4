"""A report as a tree of elements."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Element:
    def __init__(self, tag, attributes=(), parent=None):
        self.tag, self.attributes, self.parent = tag, dict(attributes), parent
        self.children = []

    def __iter__(self):
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    def text(self):
        parts = (c if isinstance(c, str) else c.text() for c in self.children)
        return " ".join(" ".join(parts).split())

    def all(self, tag, css_class=None):
        return [e for e in self if e.tag == tag and (css_class is None or css_class in e.classes)]


class Page(HTMLParser):
    """A tree of the page. A tag that is closed in the wrong place is an error."""

    def __init__(self, path):
        super().__init__()
        self.root = self.place = Element("document")
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert self.place is self.root, f"<{self.place.tag}> is never closed"

    def handle_starttag(self, tag, attributes):
        element = Element(tag, attributes, self.place)
        self.place.children.append(element)
        if tag not in VOID:
            self.place = element

    def handle_startendtag(self, tag, attributes):
        self.place.children.append(Element(tag, attributes, self.place))

    def handle_endtag(self, tag):
        assert tag == self.place.tag, f"</{tag}> closes <{self.place.tag}>"
        self.place = self.place.parent

    def handle_data(self, data):
        self.place.children.append(data)

    def section(self, name):
        return next(
            e for e in self.root.all("section") if any(c.attributes.get("id") == name for c in e)
        )

    def rows(self, name):
        table = self.section(name).all("table")[-1]
        return [[cell.text() for cell in row.all("td")] for row in table.all("tr")[1:]]

    def tiles(self):
        tiles = self.root.all("div", "tile")
        return {tile.all("dt")[0].text(): [d.text() for d in tile.all("dd")] for tile in tiles}

    def gallery(self, name):
        return self.section(name).all("li", "sample")
