//! `POST /v1/chat/completions`: conversations to answer.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitllama_chat::{ChatTemplate, Conversation, Message};
use bitllama_runtime::Stop;
use bitllama_runtime::text::encode;
use bitllama_structured::{Delta, Splitter, Tools};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::answer::{Usage, Whole, finish_reason, whole};
use super::body::parse;
use super::error::{ApiError, Result};
use super::logprobs;
use super::sampling::{self, Parameters};
use super::stream::{Pieces, respond, side_by_side};
use super::structure::{self, Structure};
use super::{Head, Server};
use crate::engine::{Event, Request};
use crate::models::Served;

/// Keys of a request beside those of [`sampling`] and [`structure`].
const KEYS: [&str; 11] = [
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "chat_template_kwargs",
    "continue_final_message",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
];

/// Likeliest tokens that are given with each one, at most.
const MAX_LOGPROBS: usize = 20;

#[derive(Debug, Deserialize)]
struct Body {
    model: Option<String>,
    #[serde(default)]
    messages: Vec<Message>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    #[serde(default)]
    logprobs: bool,
    top_logprobs: Option<usize>,
    /// Variables of the chat template, as in vLLM.
    #[serde(default)]
    chat_template_kwargs: Map<String, Value>,
    /// Whether the last message is the beginning of the answer, as in vLLM.
    #[serde(default)]
    continue_final_message: bool,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    #[serde(flatten)]
    structure: Structure,
    #[serde(flatten)]
    parameters: Parameters,
}

/// Answers a request.
pub async fn chat(State(server): State<Server>, body: Bytes) -> Result<Response> {
    let body: Body = parse(&body, &[&KEYS, &sampling::KEYS, &structure::KEYS])?;
    let place = server.model(body.model.as_deref())?;
    let model = server.models.at(place);
    let (answers, top) = check(&body)?;
    let max_tokens = body.max_completion_tokens.or(body.max_tokens).unwrap_or(usize::MAX >> 1);
    let prompt = prompt(model, &body)?;
    let tools = body.tools.as_ref().filter(|tools| tools.as_array().is_none_or(|tools| !tools.is_empty()));
    let parallel = body.parallel_tool_calls.unwrap_or(true);
    let tools = tools.map(|tools| structure::tools(model, tools, body.tool_choice.as_ref(), parallel)).transpose()?;
    let constraint = structure::constraint(model, &body.structure, tools.as_deref())?;
    let mut choices = Vec::with_capacity(answers);
    for answer in 0..answers {
        let request = Request {
            prompt: prompt.clone(),
            options: body.parameters.options(max_tokens, answer)?,
            logprobs: top,
            prompt_logprobs: false,
            ignore_eos: body.parameters.ignore_eos,
            constraint: constraint.clone(),
            tools: tools.clone(),
        };
        choices.push(model.engine.submit(request)?);
    }
    if body.parameters.stream {
        let head = Head::new("chatcmpl", "chat.completion.chunk", &model.id);
        let (server, counts, prompt) = (server.clone(), body.parameters.counts(), prompt.len());
        return Ok(respond(move |pieces| stream(server, place, head, choices, tools, (prompt, counts), pieces)));
    }
    let head = Head::new("chatcmpl", "chat.completion", &model.id);
    let mut usage = Usage { prompt: prompt.len(), ..Usage::default() };
    let mut told = Vec::with_capacity(answers);
    for (index, events) in choices.into_iter().enumerate() {
        let whole = whole(events).await?;
        if index == 0 {
            usage.cached = whole.prompt.cached;
        }
        usage.completion += whole.done.tokens;
        let logprobs = top.map(|_| logprobs::of_chat(&model.engine, &whole.logprobs));
        let (message, reason) = told_message(&whole, tools.as_deref());
        told.push(json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason }));
    }
    Ok(Json(head.counted(told, usage)).into_response())
}

/// The message of an answer, and the reason for its end.
fn told_message(whole: &Whole, tools: Option<&Tools>) -> (Value, &'static str) {
    let Some(tools) = tools else {
        let message = json!({ "role": "assistant", "content": whole.text, "refusal": null });
        return (message, reason(whole.done.stop, 0));
    };
    let answer = tools.parse(&whole.text);
    let mut message = json!({ "role": "assistant", "content": answer.content, "refusal": null });
    if !answer.tool_calls.is_empty() {
        message["tool_calls"] = json!(answer.tool_calls);
    }
    (message, reason(whole.done.stop, answer.tool_calls.len()))
}

/// The reason for the end of an answer with so many calls, the last of which may be cut off.
fn reason(stop: Stop, calls: usize) -> &'static str {
    match finish_reason(stop) {
        "stop" if calls > 0 => "tool_calls",
        reason => reason,
    }
}

/// Answers per prompt, and likeliest tokens to give with each one.
fn check(body: &Body) -> Result<(usize, Option<usize>)> {
    if body.messages.is_empty() {
        return Err(ApiError::parameter("messages", "there are no messages"));
    }
    let top = match (body.logprobs, body.top_logprobs) {
        (false, Some(_)) => return Err(ApiError::parameter("top_logprobs", "top_logprobs needs logprobs = true")),
        (false, None) => None,
        (true, top) => Some(top.unwrap_or(0)),
    };
    match top {
        Some(count) if count > MAX_LOGPROBS => {
            Err(ApiError::parameter("top_logprobs", format!("top_logprobs = {count} is more than {MAX_LOGPROBS}")))
        }
        _ => Ok((body.parameters.answers()?, top)),
    }
}

/// The functions that the template shows to the model; none where it must not call any.
fn shown_tools(body: &Body) -> Option<Vec<Value>> {
    let none = body.tool_choice.as_ref().is_some_and(|choice| choice == "none");
    body.tools.as_ref().and_then(Value::as_array).filter(|tools| !none && !tools.is_empty()).cloned()
}

/// The tokens of a conversation up to its answer.
fn prompt(model: &Served, body: &Body) -> Result<Vec<u32>> {
    let template = model.template.as_ref().ok_or_else(|| {
        ApiError::invalid(format!("the model `{}` has no chat template; use /v1/completions", model.id))
    })?;
    let conversation = Conversation {
        messages: body.messages.clone(),
        add_generation_prompt: !body.continue_final_message,
        continue_final_message: body.continue_final_message,
        extra: body.chat_template_kwargs.clone(),
        tools: shown_tools(body),
        ..Conversation::default()
    };
    let fault = |error: String| ApiError::parameter("messages", error);
    let text = rendered(template, conversation).map_err(|error| fault(error.to_string()))?;
    // The template writes the BOS itself.
    encode(model.engine.tokenizer(), None, &text).map_err(|error| fault(error.to_string()))
}

/// The text of a conversation. Some templates fail on calls whose content is null, as clients send them, and take an empty one.
fn rendered(template: &ChatTemplate, mut conversation: Conversation) -> bitllama_chat::Result<String> {
    let found = template.render(&conversation);
    let has_text = |message: &Message| message.get("content").is_some_and(|content| !content.is_null());
    if found.is_ok() || conversation.messages.iter().all(has_text) {
        return found;
    }
    for message in conversation.messages.iter_mut().filter(|message| !has_text(message)) {
        message.insert("content".into(), "".into());
    }
    template.render(&conversation).or(found)
}

/// Sends all answers as their tokens come.
async fn stream(
    server: Server,
    place: usize,
    head: Head,
    choices: Vec<UnboundedReceiver<Event>>,
    tools: Option<Arc<Tools>>,
    (prompt, counts): (usize, bool),
    pieces: Pieces,
) {
    let parts = choices.into_iter().enumerate().map(|(index, events)| {
        let splitter = tools.as_ref().map(|tools| tools.splitter());
        let (server, head, pieces) = (server.clone(), head.clone(), pieces.clone());
        async move { stream_choice(server.models.at(place), &head, (index, splitter), events, &pieces).await }
    });
    let parts: Vec<_> = parts.collect();
    let last = |usages: Vec<Usage>| {
        let cached = usages.iter().map(|usage| usage.cached).max().unwrap_or(0);
        let completion = usages.iter().map(|usage| usage.completion).sum();
        counts.then(|| head.counted(Vec::new(), Usage { prompt, cached, completion }))
    };
    side_by_side(pieces, parts.into_iter(), last).await;
}

/// Sends an answer as its tokens come. None where nobody reads any more, or it failed.
async fn stream_choice(
    model: &Served,
    head: &Head,
    (index, splitter): (usize, Option<Splitter>),
    mut events: UnboundedReceiver<Event>,
    pieces: &Pieces,
) -> Option<Usage> {
    let (mut usage, mut text) = (Usage::default(), Text { splitter, calls: 0 });
    let send = async |delta: Value, logprobs: Option<Value>, reason: Option<&str>| {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason });
        pieces.send(&head.object(vec![choice])).await.ok()
    };
    send(json!({ "role": "assistant", "content": "" }), None, None).await?;
    while let Some(event) = events.recv().await {
        match event {
            Event::Prompt(computed) => usage.cached = computed.cached,
            Event::Token(token) => {
                let logprobs = token.logprob.map(|logprob| logprobs::of_chat(&model.engine, &[logprob]));
                let mut deltas = text.push(&token.text);
                if deltas.is_empty() && logprobs.is_some() {
                    deltas.push(json!({ "content": "" }));
                }
                let mut logprobs = Some(logprobs).into_iter();
                for delta in deltas {
                    send(delta, logprobs.next().flatten(), None).await?;
                }
            }
            Event::Done(done) => {
                let mut deltas = text.push(&done.text);
                deltas.extend(text.finish());
                for delta in deltas {
                    send(delta, None, None).await?;
                }
                send(json!({}), None, Some(reason(done.stop, text.calls))).await?;
                usage.completion = done.tokens;
                return Some(usage);
            }
            Event::Failed(error) => {
                drop(pieces.send(&ApiError::internal(error).body()).await);
                return None;
            }
        }
    }
    None
}

/// The text of an answer on its way out, split into content and calls where there are functions to call.
struct Text {
    splitter: Option<Splitter>,
    /// Calls so far.
    calls: usize,
}

impl Text {
    /// The additions to the message that a piece of text makes.
    fn push(&mut self, piece: &str) -> Vec<Value> {
        let deltas = match &mut self.splitter {
            Some(splitter) => splitter.push(piece),
            None if piece.is_empty() => Vec::new(),
            None => vec![Delta::Content(piece.to_owned())],
        };
        self.told(deltas)
    }

    /// The additions that were held back.
    fn finish(&mut self) -> Vec<Value> {
        let deltas = self.splitter.take().map(Splitter::finish).unwrap_or_default();
        self.told(deltas)
    }

    fn told(&mut self, deltas: Vec<Delta>) -> Vec<Value> {
        let told = |delta| match delta {
            Delta::Content(text) => json!({ "content": text }),
            Delta::Call(call) => {
                let mut call = json!(call);
                call["index"] = self.calls.into();
                self.calls += 1;
                json!({ "tool_calls": [call] })
            }
            Delta::Arguments(text) => {
                let last = self.calls.saturating_sub(1);
                json!({ "tool_calls": [{ "index": last, "function": { "arguments": text } }] })
            }
        };
        deltas.into_iter().map(told).collect()
    }
}
