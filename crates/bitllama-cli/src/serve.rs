//! `bitllama serve`: an OpenAI-compatible server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, bail, ensure};
use bitllama_console as console;
use bitllama_runtime::Settings;
use bitllama_server::{Connections, Http, Limits, Models, Served, Server, listen, router};
use clap::Args;
use tokio::net::TcpListener;

use crate::source::{Compute, Quantize, open_draft};

/// Answer requests over HTTP, as OpenAI's API does
#[derive(Debug, Args)]
pub struct Options {
    /// Artifact, checkpoint, folder of a run, Hugging Face directory or GGUF file to serve, under its name or as NAME=PATH; may be
    /// given several times, the first one answers requests that name no model
    #[arg(long = "artifact", value_name = "[NAME=]PATH", required = true)]
    artifacts: Vec<Named>,
    /// Smaller model with the same tokenizer, such as a low-bit student, that guesses tokens for the model of this name, or for the first
    /// one; may be given several times
    #[arg(long = "draft", value_name = "[NAME=]PATH")]
    drafts: Vec<DraftOf>,
    /// Address to listen at; others than the loopback let other machines in
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen at; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// File with the key that requests must have (`Authorization: Bearer KEY`) [default: the variable BITLLAMA_API_KEY, else none]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Origin whose pages may ask, such as https://example.org; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<axum::http::HeaderValue>,
    /// Memory for keys and values of each model, in MB
    #[arg(long, value_name = "MB", default_value_t = 2048)]
    kv_memory: usize,
    /// Requests of a model that run together, at most
    #[arg(long, value_name = "N", default_value_t = Limits::default().batch, value_parser = at_least_one)]
    batch: usize,
    /// Requests of a model that wait, at most; others are answered with status 429
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue)]
    queue: usize,
    /// Tokens of prompts that are computed between two tokens of running answers
    #[arg(long, value_name = "N", default_value_t = Limits::default().chunk, value_parser = at_least_one)]
    chunk: usize,
    /// Connections at a time, at most; others wait
    #[arg(long, value_name = "N", default_value_t = Connections::default().most, value_parser = at_least_one)]
    connections: usize,
    /// Size of a request, at most, in MB
    #[arg(long, value_name = "MB", default_value_t = 8)]
    body: usize,
    /// Seconds for answers in progress after an interrupt
    #[arg(long, value_name = "S", default_value_t = Connections::default().drain.as_secs())]
    drain: u64,
    #[command(flatten)]
    quantize: Quantize,
    #[command(flatten)]
    compute: Compute,
}

/// A model's path and its name in requests.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    name: String,
    path: PathBuf,
}

/// The path of a draft, and the name of the model that it is for, or none for the first one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DraftOf {
    model: Option<String>,
    path: PathBuf,
}

/// The two parts of `NAME=PATH`.
fn name_and_path(text: &str) -> (Option<&str>, PathBuf) {
    match text.split_once('=') {
        Some((name, path)) if !name.contains(['/', '\\']) => (Some(name), path.into()),
        _ => (None, text.into()),
    }
}

impl FromStr for DraftOf {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (model, path) = name_and_path(text);
        Ok(Self { model: model.map(str::to_owned), path })
    }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = name_and_path(text);
        let name = name.map_or_else(|| name_of(&path), str::to_owned);
        if name.is_empty() { Err("the model has no name; write NAME=PATH".into()) } else { Ok(Self { name, path }) }
    }
}

/// The name of a model by its path: that of the file or folder, and for `artifact` in the folder of a run that of the run.
fn name_of(path: &Path) -> String {
    let of = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = of(path);
    match (name.as_str(), path.parent()) {
        ("artifact", Some(run)) if !of(run).is_empty() => of(run),
        _ => name.strip_suffix(".gguf").map_or(name.clone(), str::to_owned),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".into()),
        number => number.map_err(|error: std::num::ParseIntError| error.to_string()),
    }
}

/// Runs the command.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let api_key = api_key(options.api_key_file.as_deref())?;
    for (index, model) in options.artifacts.iter().enumerate() {
        let again = options.artifacts[..index].iter().any(|other| other.name == model.name);
        ensure!(!again, "two models are called {}; write NAME=PATH", model.name);
    }
    let drafts = drafts(options)?;
    let settings = options.compute.start(Settings::fast())?;
    let limits = Limits {
        kv_bytes: options.kv_memory.saturating_mul(1 << 20),
        batch: options.batch,
        queue: options.queue,
        chunk: options.chunk,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let address = SocketAddr::new(options.host, options.port);
    // Before models are loaded: a port in use is found at once.
    let listener = runtime.block_on(TcpListener::bind(address)).with_context(|| address.to_string())?;
    let mut models = Vec::new();
    for (Named { name, path }, draft) in options.artifacts.iter().zip(drafts) {
        let at = || path.display().to_string();
        let model = options.quantize.open(path)?;
        let draft = draft.map(|draft| open_draft(draft, &model.tokenizer)).transpose()?;
        models.push(Served::start(name.clone(), model, draft, settings.clone(), limits).with_context(at)?);
    }
    let server = Server { models: Models::new(models), api_key };
    let http = Http { body: options.body.saturating_mul(1 << 20), cors: options.cors_origin.clone() };
    let connections =
        Connections { most: options.connections, drain: Duration::from_secs(options.drain), ..Connections::default() };
    let names = options.artifacts.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
    console::note(format_args!("serving {names} at http://{}\n", listener.local_addr()?));
    if !options.host.is_loopback() && server.api_key.is_none() {
        console::note(format_args!(
            "note: other machines can reach this server, and it asks for no key (--api-key-file)\n"
        ));
    }
    runtime.block_on(listen(listener, router(server.clone(), &http), connections, interrupted()));
    server.models.iter().for_each(|model| model.engine.abort());
    Ok(())
}

/// The draft of each model, if it has one.
fn drafts(options: &Options) -> anyhow::Result<Vec<Option<&Path>>> {
    let mut drafts = vec![None; options.artifacts.len()];
    for DraftOf { model, path } in &options.drafts {
        let of = |name: &String| options.artifacts.iter().position(|other| other.name == *name);
        let place = model.as_ref().map_or(Some(0), of);
        let Some(place) = place else {
            let names = options.artifacts.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
            bail!(
                "--draft {}: no model is called {}; there are {names}",
                path.display(),
                model.as_deref().unwrap_or("")
            );
        };
        let name = &options.artifacts[place].name;
        ensure!(drafts[place].is_none(), "--draft {}: {name} has a draft already", path.display());
        drafts[place] = Some(path.as_path());
    }
    Ok(drafts)
}

/// The key of a file, or else of the environment.
fn api_key(file: Option<&Path>) -> anyhow::Result<Option<Arc<str>>> {
    const VARIABLE: &str = "BITLLAMA_API_KEY";
    let (key, at) = match file {
        Some(path) => {
            let at = path.display().to_string();
            (Some(fs::read_to_string(path).with_context(|| at.clone())?), at)
        }
        None => (env::var(VARIABLE).ok(), VARIABLE.to_owned()),
    };
    let Some(key) = key else { return Ok(None) };
    match key.trim() {
        "" => bail!("{at}: the key is empty"),
        key => Ok(Some(key.into())),
    }
}

/// Completes when somebody asks the program to stop.
async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => (),
                _ = terminate.recv() => (),
            }
            return;
        }
    }
    // Where it cannot be heard, the program ends as ever.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_named_by_their_paths() {
        for (text, name, path) in [
            ("runs/tiny/artifact", "tiny", "runs/tiny/artifact"),
            ("models/Qwen.q4_k_m.gguf", "Qwen.q4_k_m", "models/Qwen.q4_k_m.gguf"),
            ("small=runs/tiny/artifact", "small", "runs/tiny/artifact"),
            ("a/b=c", "b=c", "a/b=c"),
            ("artifact", "artifact", "artifact"),
        ] {
            assert_eq!(text.parse(), Ok(Named { name: name.into(), path: path.into() }));
        }
        assert!("=x".parse::<Named>().is_err());
    }
}
