"""Templates: what parses, what renders, and what is refused with its place."""

import pytest

from app.graders.template import TemplateError, UnresolvedVariable, names, parse

ITEM = {
    "label": "Zürich",
    "n": 3,
    "x": 1.0,
    "yes": True,
    "nothing": None,
    "deep": {"list": [{"a b": "spaced"}, [10, 20]], "键": "值", "0": "zero"},
    "obj": {"b": 1, "a": ["é", None]},
    "with-dash": "ok",
}
SAMPLE = {
    "output_text": "out",
    "output_json": {"team": "billing", "tags": []},
    "output_tools": [],
    "choices": [],
}


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{{ item.label }}", "Zürich"),
        ("{{item.label}}", "Zürich"),
        ("{{\n item.label\t}}", "Zürich"),
        ("a {{item.n}} b {{ sample.output_text }} c", "a 3 b out c"),
        ("{{item.x}}|{{item.yes}}|{{item.nothing}}", "1.0|true|null"),
        ("{{item.obj}}", '{"b":1,"a":["é",null]}'),
        ('{{item.deep.list[0]["a b"]}}', "spaced"),
        ("{{item.deep.list[0]['a b']}}", "spaced"),
        ("{{item.deep.list[1][1]}}", "20"),
        ("{{item.deep.list.1.0}}", "10"),
        ("{{item.deep[0]}}", "zero"),
        ("{{item.deep.键}}", "值"),
        ("{{item.with-dash}}", "ok"),
        ("{{sample.output_json.team}}", "billing"),
        ("{{sample.output_json}}", '{"team":"billing","tags":[]}'),
        ('{"a":{{item.n}}}', '{"a":3}'),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ("{{item.label}}{{item.label}}", "ZürichZürich"),
    ],
)
def test_renders(text: str, rendered: str) -> None:
    assert parse(text).render(ITEM, SAMPLE) == rendered


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{{ }}", "character 1 names nothing"),
        ("{{}}", "names nothing"),
        ("x {{ item }}", "character 3 names no field"),
        ("{{ label }}", "must begin with `item.` or `sample.`"),
        ("{{ items.label }}", "must begin with"),
        ("{{ sample.text }}", "no variable of the sample"),
        ("{{ sample.output_audio }}", "no variable of the sample"),
        ("{{ sample[0] }}", "no variable of the sample"),
        ("{{ item.label", "character 1 is never closed"),
        ("ok {{ item.a }} and {{ item.b }", "character 21 is never closed"),
        ("{{ item.a | upper }}", "is not a path"),
        ("{{ item..a }}", "is not a path"),
        ("{{ item.a[-1] }}", "is not a path"),
        ("{{ item.a[x] }}", "is not a path"),
        ("{{ item.a() b }}", "is not a path"),
        ("{{{ item.a }}}", "names nothing"),
        ("{{ item.__class__ __mro__ }}", "is not a path"),
    ],
)
def test_refuses_with_the_place(text: str, place: str) -> None:
    with pytest.raises(TemplateError, match=place.replace("(", r"\(").replace("[", r"\[")):
        parse(text)


@pytest.mark.parametrize(
    "path",
    [
        "item.missing",
        "item.label.length",
        "item.deep.list[2]",
        "item.deep.list.x",
        "item.deep.list." + "9" * 40,
        "item.nothing.a",
        "item.n[0]",
        "item.label[0]",
        "item.obj.__class__",
    ],
)
def test_a_path_that_leads_nowhere_names_itself(path: str) -> None:
    with pytest.raises(UnresolvedVariable) as caught:
        parse(f"x {{{{ {path} }}}}").render(ITEM, SAMPLE)
    assert caught.value.path == path
    assert caught.value.namespace == "item"


def test_what_a_variable_holds_is_never_read_as_a_template() -> None:
    item = {"label": "{{ item.secret }}", "secret": "s"}
    assert parse("{{ item.label }}").render(item, SAMPLE) == "{{ item.secret }}"


def test_names_lists_item_paths_only() -> None:
    template = parse("{{ item.a.b }} {{ sample.output_text }} {{item.c[0]}} {{ item.a.b }}")
    assert names(template) == {"item.a.b", "item.c[0]"}
