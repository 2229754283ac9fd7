//! `POST /v1/chat/completions`: conversations to answer.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitllama_chat::{Conversation, Message};
use bitllama_runtime::text::encode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::answer::{Usage, finish_reason, whole};
use super::body::parse;
use super::error::{ApiError, Result};
use super::logprobs;
use super::sampling::Parameters;
use super::stream::{Pieces, respond};
use super::{Head, Server};
use crate::engine::{Event, Request};
use crate::models::Served;

/// Keys of a request.
const KEYS: [&str; 21] = [
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "chat_template_kwargs",
    "continue_final_message",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "n",
    "stop",
    "stream",
    "stream_options",
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
    #[serde(flatten)]
    parameters: Parameters,
}

/// Answers a request.
pub async fn chat(State(server): State<Server>, body: Bytes) -> Result<Response> {
    let body: Body = parse(&body, &KEYS)?;
    let place = server.model(body.model.as_deref())?;
    let model = server.models.at(place);
    let (answers, top) = check(&body)?;
    let max_tokens = body.max_completion_tokens.or(body.max_tokens).unwrap_or(usize::MAX >> 1);
    let prompt = prompt(model, &body)?;
    let mut choices = Vec::with_capacity(answers);
    for answer in 0..answers {
        let request = Request {
            prompt: prompt.clone(),
            options: body.parameters.options(max_tokens, answer)?,
            logprobs: top,
            prompt_logprobs: false,
            ignore_eos: body.parameters.ignore_eos,
        };
        choices.push(model.engine.submit(request)?);
    }
    if body.parameters.stream {
        let head = Head::new("chatcmpl", "chat.completion.chunk", &model.id);
        let (server, counts, prompt) = (server.clone(), body.parameters.counts(), prompt.len());
        return Ok(respond(move |pieces| stream(server, place, head, choices, (prompt, counts), pieces)));
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
        let logprobs = top.map(|_| logprobs::of_chat(model.engine.tokenizer(), &whole.logprobs));
        told.push(json!({
            "index": index, "message": { "role": "assistant", "content": whole.text, "refusal": null },
            "logprobs": logprobs, "finish_reason": finish_reason(whole.done.stop),
        }));
    }
    let mut answer = head.object(told);
    answer["usage"] = usage.to_json();
    Ok(Json(answer).into_response())
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
        ..Conversation::default()
    };
    let fault = |error: String| ApiError::parameter("messages", error);
    let text = template.render(&conversation).map_err(|error| fault(error.to_string()))?;
    // The template writes the BOS itself.
    encode(model.engine.tokenizer(), None, &text).map_err(|error| fault(error.to_string()))
}

/// Sends all answers as their tokens come.
async fn stream(
    server: Server,
    place: usize,
    head: Head,
    choices: Vec<UnboundedReceiver<Event>>,
    (prompt, counts): (usize, bool),
    pieces: Pieces,
) {
    let mut tasks = tokio::task::JoinSet::new();
    for (index, events) in choices.into_iter().enumerate() {
        let (server, head, pieces) = (server.clone(), head.clone(), pieces.clone());
        tasks.spawn(async move {
            tokio::select! {
                usage = stream_choice(server.models.at(place), &head, index, events, &pieces) => usage,
                () = pieces.closed() => None,
            }
        });
    }
    let mut all = Usage { prompt, ..Usage::default() };
    while let Some(usage) = tasks.join_next().await {
        if let Ok(Some(usage)) = usage {
            all.cached = all.cached.max(usage.cached);
            all.completion += usage.completion;
        }
    }
    if counts {
        let mut last = head.object(Vec::new());
        last["usage"] = all.to_json();
        drop(pieces.send(&last).await);
    }
    pieces.finish().await;
}

/// Sends an answer as its tokens come. None where nobody reads any more, or it failed.
async fn stream_choice(
    model: &Served,
    head: &Head,
    index: usize,
    mut events: UnboundedReceiver<Event>,
    pieces: &Pieces,
) -> Option<Usage> {
    let mut usage = Usage::default();
    let send = async |delta: Value, logprobs: Option<Value>, reason: Option<&str>| {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason });
        pieces.send(&head.object(vec![choice])).await.ok()
    };
    send(json!({ "role": "assistant", "content": "" }), None, None).await?;
    while let Some(event) = events.recv().await {
        match event {
            Event::Prompt(computed) => usage.cached = computed.cached,
            Event::Token(token) => {
                let logprobs = token.logprob.map(|logprob| logprobs::of_chat(model.engine.tokenizer(), &[logprob]));
                if !token.text.is_empty() || logprobs.is_some() {
                    send(json!({ "content": token.text }), logprobs, None).await?;
                }
            }
            Event::Done(done) => {
                if !done.text.is_empty() {
                    send(json!({ "content": done.text }), None, None).await?;
                }
                send(json!({}), None, Some(finish_reason(done.stop))).await?;
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
