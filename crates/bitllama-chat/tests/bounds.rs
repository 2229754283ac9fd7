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
fn x_nested() {
    let r = render(
        "{% set ns = namespace(x=[]) %}{% for i in range(10000) %}{% for j in range(40) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}a",
    );
    println!("{r:?}");
}

#[test]
fn y_cycle() {
    let r = render("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}");
    println!("{r:?}");
}

#[test]
fn z_cycle() {
    let r = render("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns ~ 'a' }}");
    println!("{r:?}");
}
