//! Templates that do not end, grow or nest without end, and errors in one line.

use bitllama_chat::{ChatTemplate, Conversation, Error, Limits, SpecialTokens, message};

fn render(source: &str) -> Result<String, Error> {
    let conversation = Conversation { messages: vec![message("user", "Hello")], ..Conversation::default() };
    ChatTemplate::new(source, SpecialTokens::new())?.render(&conversation)
}

#[test]
fn loops_without_end_run_out_of_fuel() {
    let source = "{% for a in range(9999) %}\n{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    assert_eq!(render(source).unwrap_err(), Error::Fuel(2));
}

#[test]
fn text_that_doubles_runs_out_of_fuel() {
    let doubled = "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    assert_eq!(render(doubled).unwrap_err(), Error::Fuel(1));
    assert_eq!(render("{{ 'a' * 99999999 * 99 }}").unwrap_err(), Error::Fuel(1));
    assert_eq!(render("{% set x = ('a' * 9999) | replace('a', 'b' * 999999) %}").unwrap_err(), Error::Fuel(1));
}

#[test]
fn a_long_prompt_is_cut_off() {
    let source = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
    let limits = Limits { output: 5 * 9999, ..Limits::default() };
    let template = |limits| ChatTemplate::new(source, SpecialTokens::new()).unwrap().with_limits(limits);
    let conversation = Conversation { messages: vec![message("user", "Hello")], ..Conversation::default() };
    assert_eq!(template(limits).render(&conversation).unwrap().len(), 5 * 9999);
    let error = template(Limits { output: 5 * 9999 - 1, ..limits }).render(&conversation).unwrap_err();
    assert_eq!(error, Error::Output(5 * 9999 - 1));
}

#[test]
fn macros_that_call_themselves_end() {
    let error = render("{% macro m() %}{{ m() }}{% endmacro %}\n{{ m() }}").unwrap_err();
    assert!(matches!(error, Error::Render { .. }), "{error}");
}

#[test]
fn expressions_nested_without_end_are_no_template() {
    let source = format!("{{{{ {}1{} }}}}", "(".repeat(9999), ")".repeat(9999));
    assert!(matches!(render(&source).unwrap_err(), Error::Syntax { line: 1, .. }));
}

#[test]
fn values_nested_without_end_are_refused() {
    let set = "{% set ns = namespace(x=[]) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}";
    let lines = format!("{{% set x = [] %}}{}", "{% set x = {'x': x} %}".repeat(200));
    let filters = format!("{{{{ [1]{} }}}}", "|batch(1)".repeat(150));
    for source in [set, &lines, &filters] {
        let error = render(source).unwrap_err();
        assert_eq!(
            error.to_string().split("; ").next(),
            Some("chat template, line 1: a variable takes a value of at most 100 levels")
        );
    }
    let macros = "{% macro m(x) %}{% if x | length %}{{ m([[[[[[[[x]]]]]]]]) }}{% endif %}{% endmacro %}{{ m([1]) }}";
    assert!(matches!(render(macros).unwrap_err(), Error::Render { line: 1, .. }));
}

#[test]
fn long_and_deep_templates_are_compiled_or_refused() {
    let source = |(start, step, end): (&str, &str, &str), count| format!("{start}{}{end}", step.repeat(count));
    let chains = [
        ("{{ 1", "|string", " }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ messages", "[0]", " }}"),
        ("{% if true %}a", "{% elif x %}", "{% endif %}"),
    ];
    let depths = [
        ("{{ ", "not ", "1 }}"),
        ("{{ ", "1 if x else ", "2 }}"),
        ("", "{% if true %}", "a"),
        ("{{ ", "-", "1 }}"),
        ("{{ ", "(", "1 }}"),
    ];
    for chain in chains {
        let result = render(&source(chain, 330));
        assert!(!matches!(result, Err(Error::Syntax { .. })), "{chain:?}: {result:?}");
    }
    for part in chains.into_iter().chain(depths) {
        let result = render(&source(part, 40_000));
        assert!(matches!(result, Err(Error::Syntax { .. })), "{part:?}: {result:?}");
    }
}

#[test]
fn namespaces_do_not_hold_themselves() {
    for value in
        ["ns", "[ns]", "{'a': (ns,)}", "[ns][0:]", "cycler(ns)", "joiner(ns)", "namespace(y=ns)", "[ns] | list"]
    {
        let source = format!("{{% set ns = namespace() %}}{{% set ns.x = {value} %}}{{{{ ns.x ~ ns }}}}");
        assert!(
            render(&source).unwrap_err().to_string().contains("takes neither a function nor a namespace"),
            "{value}"
        );
    }
    assert_eq!(render("{% set ns = namespace(a=[1]) %}{% set m = namespace(b=ns) %}{{ m.b.a }}").unwrap(), "[1]");
}

#[test]
fn a_failure_of_the_engine_is_an_error() {
    assert!(render("{% for x in [1] %}{{ loop.cycle() }}{% endfor %}").is_err());
}

#[test]
fn errors_of_templates_are_one_line_with_the_place() {
    let errors = |source: &str| render(source).unwrap_err().to_string();
    assert_eq!(errors("a\n{% if %}"), "chat template, line 2: unexpected end of block; correct the template");
    assert_eq!(
        errors("a\n\n{{ messages.missing.more }}"),
        "chat template, line 3: undefined value; the template may not be made for such a conversation"
    );
    let name = "x".repeat(1000);
    assert!(errors(&format!("{{{{ 1 | {name} }}}}")).len() < 300);
    assert_eq!(
        errors("{{ raise_exception('No\n\x1b[2J!') }}"),
        "the chat template refuses the conversation: \"No\\n\\u{1b}[2J!\""
    );
}

#[test]
fn conversations_that_no_template_renders_are_errors() {
    let template = ChatTemplate::new("{{ messages[-1].content }}", SpecialTokens::new()).unwrap();
    let errors = |conversation: &Conversation| template.render(conversation).unwrap_err().to_string();
    let empty = Conversation::default();
    assert_eq!(errors(&empty), "conversation: there are no messages; give at least one");
    let both = Conversation {
        messages: vec![message("user", "")],
        add_generation_prompt: true,
        continue_final_message: true,
        ..empty
    };
    assert_eq!(
        errors(&both),
        "conversation: continue_final_message and add_generation_prompt exclude each other; choose one"
    );
}
