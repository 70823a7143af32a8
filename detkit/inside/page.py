"""inside.html: what the layers of a network have learned and where it looks, in one page that stands alone."""

from collections.abc import Sequence
from html import escape

from detkit.explain.canvas import Section
from detkit.explain.page import section_html
from detkit.report.markup import fill, resource


def inside_page(sections: Sequence[Section], title: str, protocol: str) -> str:
    """Return the page's HTML: each section with its text, images and legend."""
    style = resource("explain.css", "detkit.explain") + resource("inside.css", "detkit.inside")
    return fill(
        resource("inside.html", "detkit.inside"),
        style=style,
        script=resource("inside.js", "detkit.inside"),
        data={},
        title=escape(title),
        protocol=escape(protocol),
        nav="".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections),
        sections="\n".join(section_html(number, section) for number, section in enumerate(sections, 1)),
    )
