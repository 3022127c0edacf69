import pytest
from outpost_runtime.errors import BundleError, InvalidInputError
from outpost_runtime.text.chat import ChatTemplate, Message

TURNS = """\
{%- for m in messages %}
    {%- if m.role == 'system' %}
        {{- raise_exception('no system turns') }}
    {%- endif %}
<{{ m.role }}>{{ m.content | trim }}
{% endfor %}
{%- if add_generation_prompt %}
<assistant>
{%- endif %}"""


def test_turns_are_rendered_as_transformers_renders_them():
    template = ChatTemplate("{{ bos_token }}" + TURNS, {"bos_token": "<s>"})
    messages = [Message(role="user", content=" Hi "), Message(role="assistant", content="Yes?")]
    assert template.render(messages) == "<s><user>Hi\n<assistant>Yes?\n<assistant>"


def test_what_the_template_refuses_is_told_to_the_client():
    with pytest.raises(InvalidInputError, match="no system turns"):
        ChatTemplate(TURNS, {}).render([Message(role="system", content="x")])


def test_an_empty_chat_is_refused():
    with pytest.raises(InvalidInputError, match="no messages"):
        ChatTemplate(TURNS, {}).render([])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for _ in range(10**9) %}x{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(attack):
    with pytest.raises(InvalidInputError):
        ChatTemplate(attack, {}).render([Message(role="user", content="x")])


def test_a_template_that_is_no_jinja_is_a_bundle_error():
    with pytest.raises(BundleError, match="chat template"):
        ChatTemplate("{% for %}", {})


@pytest.mark.parametrize(
    ("source", "rendered"),
    [
        ("{% if tools is not none %}[TOOLS]{% endif %}x", "x"),
        ("{{ messages | tojson(ensure_ascii=False) }}", '[{"role": "user", "content": "é&<"}]'),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "é&<"),
        ("{% for m in messages %}{% break %}{% endfor %}x", "x"),
    ],
)
def test_what_transformers_offers_to_templates_is_there(source, rendered):
    assert ChatTemplate(source, {}).render([Message(role="user", content="é&<")]) == rendered
