//! `POST /v1/completions`: texts to continue.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitllama_runtime::text::{encode, own_bos};
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use tokio::sync::mpsc::UnboundedReceiver;

use super::answer::{Usage, Whole, finish_reason, whole};
use super::body::parse;
use super::error::{ApiError, Result};
use super::logprobs::Lists;
use super::sampling::{self, Parameters};
use super::stream::{Pieces, respond, side_by_side};
use super::structure::{self, Structure};
use super::{Head, Server};
use crate::engine::{Event, Prompt, Request};
use crate::models::Served;

/// Keys of a request beside those of [`sampling`] and [`structure`].
const KEYS: [&str; 7] = ["model", "prompt", "max_tokens", "echo", "logprobs", "best_of", "suffix"];

/// Tokens generated where nobody says how many, as in OpenAI's API.
const MAX_TOKENS: usize = 16;

/// Likeliest tokens that are given with each one, at most.
const MAX_LOGPROBS: usize = 20;

#[derive(Debug, Deserialize)]
struct Body {
    model: Option<String>,
    prompt: Option<Value>,
    max_tokens: Option<usize>,
    #[serde(default)]
    echo: bool,
    logprobs: Option<usize>,
    best_of: Option<usize>,
    #[serde(flatten)]
    structure: Structure,
    suffix: Option<String>,
    #[serde(flatten)]
    parameters: Parameters,
}

/// The tokens of `prompt`: a text, several, the tokens of one, or those of several.
fn prompts(prompt: &Value, model: &Served) -> Result<Vec<Vec<u32>>> {
    let fault = |cause: String| ApiError::parameter("prompt", cause);
    let unfit = || fault("prompt is no text, list of texts, list of token ids or list of such lists".into());
    let tokenizer = model.engine.tokenizer();
    let encoded = |text: &str| {
        let tokens = own_bos(tokenizer).and_then(|bos| encode(tokenizer, bos, text));
        let mut tokens = tokens.map_err(|error| fault(error.to_string()))?;
        if tokens.is_empty() {
            tokens.extend(model.engine.decoder().config().bos_token_id);
        }
        Ok(tokens)
    };
    let id = |token: &Value| token.as_u64().and_then(|token| u32::try_from(token).ok()).ok_or_else(unfit);
    let ids = |tokens: &[Value]| tokens.iter().map(id).collect::<Result<Vec<u32>>>();
    match prompt {
        Value::String(text) => Ok(vec![encoded(text)?]),
        Value::Array(items) => match items.first() {
            None => Err(fault("there is no prompt".into())),
            Some(Value::Number(_)) => Ok(vec![ids(items)?]),
            Some(Value::Array(_)) => items.iter().map(|list| ids(list.as_array().ok_or_else(unfit)?)).collect(),
            Some(_) => items.iter().map(|text| encoded(text.as_str().ok_or_else(unfit)?)).collect(),
        },
        _ => Err(unfit()),
    }
}

/// A choice in the making: its prompt and its events.
struct Choice {
    index: usize,
    prompt: Vec<u32>,
    events: UnboundedReceiver<Event>,
}

/// How choices are told.
#[derive(Clone, Copy)]
struct Form {
    echo: bool,
    logprobs: bool,
}

/// Answers a request.
pub async fn completions(State(server): State<Server>, body: Bytes) -> Result<Response> {
    let body: Body = parse(&body, &[&KEYS, &sampling::KEYS, &structure::KEYS])?;
    let place = server.model(body.model.as_deref())?;
    let model = server.models.at(place);
    let answers = check(&body)?;
    let form = Form { echo: body.echo, logprobs: body.logprobs.is_some() };
    let prompt = body.prompt.as_ref().ok_or_else(|| ApiError::parameter("prompt", "there is no prompt"))?;
    let prompts = prompts(prompt, model)?;
    let constraint = structure::constraint(model, &body.structure, None)?;
    let mut choices = Vec::with_capacity(prompts.len() * answers);
    for prompt in prompts {
        for answer in 0..answers {
            let options = body.parameters.options(body.max_tokens.unwrap_or(MAX_TOKENS), answer)?;
            let request = Request {
                prompt: prompt.clone(),
                options,
                logprobs: body.logprobs,
                prompt_logprobs: body.echo && body.logprobs.is_some(),
                ignore_eos: body.parameters.ignore_eos,
                constraint: constraint.clone(),
                tools: None,
            };
            let events = model.engine.submit(request)?;
            choices.push(Choice { index: choices.len(), prompt: prompt.clone(), events });
        }
    }
    let head = Head::new("cmpl", "text_completion", &model.id);
    if body.parameters.stream {
        let (server, counts) = (server.clone(), body.parameters.counts());
        return Ok(respond(move |pieces| stream(server, place, head, choices, form, answers, counts, pieces)));
    }
    let mut usage = Usage::default();
    let mut told = Vec::with_capacity(choices.len());
    for Choice { index, prompt, events } in choices {
        let whole = whole(events).await?;
        // A prompt with several answers counts once.
        if index % answers == 0 {
            usage.prompt += prompt.len();
            usage.cached += whole.prompt.cached;
        }
        usage.completion += whole.done.tokens;
        told.push(told_whole(model, index, &prompt, &whole, form));
    }
    Ok(Json(head.counted(told, usage)).into_response())
}

fn check(body: &Body) -> Result<usize> {
    let answers = body.parameters.answers()?;
    if body.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::parameter("suffix", "suffix is not supported"));
    }
    if body.best_of.is_some_and(|best_of| best_of != answers) {
        return Err(ApiError::parameter("best_of", "best_of other than n is not supported"));
    }
    match body.logprobs {
        Some(count) if count > MAX_LOGPROBS => {
            Err(ApiError::parameter("logprobs", format!("logprobs = {count} is more than {MAX_LOGPROBS}")))
        }
        _ => Ok(answers),
    }
}

fn told_whole(model: &Served, index: usize, prompt: &[u32], whole: &Whole, form: Form) -> Value {
    let tokenizer = model.engine.tokenizer();
    let beginning = if form.echo { text_of(tokenizer, prompt) } else { String::new() };
    let logprobs = form.logprobs.then(|| {
        let mut lists = Lists::new(tokenizer, 0);
        if form.echo {
            push_prompt(&mut lists, prompt, &whole.prompt);
        }
        lists.extend(&whole.logprobs);
        lists.to_json()
    });
    json!({
        "index": index, "text": beginning + &whole.text, "logprobs": logprobs,
        "finish_reason": finish_reason(whole.done.stop),
    })
}

fn push_prompt(lists: &mut Lists, tokens: &[u32], prompt: &Prompt) {
    tokens.first().into_iter().for_each(|token| lists.push_first(*token));
    lists.extend(&prompt.logprobs);
}

fn text_of(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    bitllama_runtime::text::decode(tokenizer, tokens).unwrap_or_default()
}

/// Sends all choices as their tokens come.
#[allow(clippy::too_many_arguments)] // What a stream is told with, moved into its task.
async fn stream(
    server: Server,
    place: usize,
    head: Head,
    choices: Vec<Choice>,
    form: Form,
    answers: usize,
    counts: bool,
    pieces: Pieces,
) {
    let parts = choices.into_iter().map(|choice| {
        let (server, head, pieces) = (server.clone(), head.clone(), pieces.clone());
        async move {
            let (index, prompt) = (choice.index, choice.prompt.len());
            let usage = stream_choice(server.models.at(place), &head, choice, form, &pieces).await?;
            // A prompt counts once, however many answers it has.
            Some(if index % answers == 0 { Usage { prompt, ..usage } } else { Usage { cached: 0, ..usage } })
        }
    });
    let parts: Vec<_> = parts.collect();
    let last = |usages: Vec<Usage>| {
        let add = |all: Usage, usage: Usage| Usage {
            prompt: all.prompt + usage.prompt,
            cached: all.cached + usage.cached,
            completion: all.completion + usage.completion,
        };
        let all = usages.into_iter().fold(Usage::default(), add);
        counts.then(|| head.counted(Vec::new(), all))
    };
    side_by_side(pieces, parts.into_iter(), last).await;
}

/// Sends a choice as its tokens come. None where nobody reads any more, or it failed.
async fn stream_choice(model: &Served, head: &Head, choice: Choice, form: Form, pieces: &Pieces) -> Option<Usage> {
    let Choice { index, prompt, mut events } = choice;
    let tokenizer = model.engine.tokenizer();
    let (mut usage, mut offset) = (Usage::default(), 0);
    while let Some(event) = events.recv().await {
        let mut lists = Lists::new(tokenizer, offset);
        let (text, reason) = match event {
            Event::Prompt(computed) => {
                usage.cached = computed.cached;
                if !form.echo {
                    continue;
                }
                push_prompt(&mut lists, &prompt, &computed);
                (text_of(tokenizer, &prompt), None)
            }
            Event::Token(token) => {
                lists.extend(token.logprob.as_slice());
                if token.text.is_empty() && !form.logprobs {
                    continue;
                }
                (token.text, None)
            }
            Event::Done(done) => {
                usage.completion = done.tokens;
                (done.text, Some(finish_reason(done.stop)))
            }
            Event::Failed(error) => {
                drop(pieces.send(&ApiError::internal(error).body()).await);
                return None;
            }
        };
        offset = lists.offset();
        let logprobs = form.logprobs.then(|| lists.to_json());
        let piece = json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason });
        pieces.send(&head.object(vec![piece])).await.ok()?;
        if reason.is_some() {
            return Some(usage);
        }
    }
    None
}
