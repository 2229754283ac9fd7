//! `bitllama chat`: a conversation in the terminal.

mod input;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};
use bitllama_chat::{ChatTemplate, Conversation, Message, message};
use bitllama_console as console;
use bitllama_runtime::text::encode;
use bitllama_runtime::{GenerationOptions, Opened, Session, Settings, Stop, generate_in, one_line};
use clap::Args;
use tokenizers::Tokenizer;

use crate::run::tell_speed;
use crate::sampling::SamplingFlags;
use crate::source::{Compute, Draft, Quantize};
use input::{Input, Said};

/// Talk with a model
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Options {
    /// Artifact, checkpoint, or folder of a run (then its best student) to talk with; also a Hugging Face directory or a GGUF file
    #[arg(long, value_name = "DIR")]
    artifact: PathBuf,
    /// System message at the start of the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Conversation to go on with: a file that `/save` wrote
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Variable of the chat template, such as enable_thinking=false; the value is JSON, else text; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    template: Vec<String>,
    #[command(flatten)]
    draft: Draft,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    quantize: Quantize,
    #[command(flatten)]
    compute: Compute,
}

const HELP: &str = "\
In the conversation:
  /system TEXT   another system message, and a new conversation
  /reset         a new conversation
  /save FILE     writes the conversation, as JSON
  /load FILE     goes on with one
  /help          lists these commands
  /exit          ends, as the end of the input does
Three quotation marks begin and end a message of several lines; a backslash at the end of a line continues it.
Ctrl-C stops an answer.";

/// Runs the command.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let generating = options.sampling.options();
    generating.sampling.check()?;
    let extra = options.template.iter().map(|text| variable(text)).collect::<anyhow::Result<_>>()?;
    let settings = options.compute.start(Settings::fast())?;
    let at = || options.artifact.display().to_string();
    let Opened { decoder, tokenizer, companions } = options.quantize.open(&options.artifact)?;
    let template = ChatTemplate::from_files(|name| companions.get(name)).with_context(at)?;
    let Some(template) = template else {
        bail!("{}: the model has no chat template; use `bitllama run` to continue a text", at());
    };
    let draft = options.draft.open(&tokenizer, &settings)?;
    let decoder = decoder.with_settings(settings);
    let mut session = Session::new(&decoder, decoder.config().short_context());
    if let Some(draft) = &draft {
        session = session.with_draft(draft);
    }
    let conversation = Conversation { add_generation_prompt: true, extra, ..Conversation::default() };
    let mut chat =
        Chat { session, tokenizer: &tokenizer, template, conversation, generating, stopped: on_interrupt()? };
    chat.reset(options.system.as_deref());
    if let Some(path) = &options.load {
        chat.load(path)?;
    }
    converse(&mut chat)
}

/// Reads and answers messages to the end of the input. What goes wrong with one of them is told, and the conversation goes on; where
/// nobody sits at a terminal, it is an error.
fn converse(chat: &mut Chat<'_>) -> anyhow::Result<()> {
    let interactive = io::stdin().is_terminal();
    let mut input = Input::new(interactive)?;
    while let Some(said) = input.next()? {
        let done = match said {
            Said::Message(text) => chat.answer(text),
            Said::System(text) => {
                chat.reset(Some(&text).filter(|text| !text.is_empty()).map(String::as_str));
                Ok(())
            }
            Said::Reset => {
                let system = chat.system().map(str::to_owned);
                chat.reset(system.as_deref());
                Ok(())
            }
            Said::Save(path) => chat.save(&path),
            Said::Load(path) => chat.load(&path),
            Said::Help => {
                console::note(format_args!("{HELP}\n"));
                Ok(())
            }
            Said::Exit => return Ok(()),
            Said::Unknown(command) => Err(anyhow::anyhow!("there is no command {command}; /help lists them")),
        };
        match done {
            Err(error) if interactive => console::note(format_args!("error: {}\n", one_line(error.as_ref()))),
            done => done?,
        }
    }
    Ok(())
}

/// A conversation in progress.
struct Chat<'a> {
    session: Session<'a>,
    tokenizer: &'a Tokenizer,
    template: ChatTemplate,
    conversation: Conversation,
    generating: GenerationOptions,
    /// Whether somebody wants no more of the answer.
    stopped: Arc<AtomicBool>,
}

impl Chat<'_> {
    fn reset(&mut self, system: Option<&str>) {
        self.conversation.messages = system.map(|text| message("system", text)).into_iter().collect();
    }

    fn system(&self) -> Option<&str> {
        let first = self.conversation.messages.first().filter(|message| message["role"] == "system")?;
        first["content"].as_str()
    }

    /// Answers a message. The conversation is as before where that fails.
    fn answer(&mut self, text: String) -> anyhow::Result<()> {
        self.conversation.messages.push(message("user", &text));
        let answer = self.generate();
        match answer {
            Ok(answer) => {
                self.conversation.messages.push(message("assistant", &answer));
                Ok(())
            }
            Err(error) => {
                self.conversation.messages.pop();
                Err(error)
            }
        }
    }

    fn generate(&mut self) -> anyhow::Result<String> {
        let prompt = self.template.render(&self.conversation)?;
        // The template writes the BOS itself.
        let prompt = encode(self.tokenizer, None, &prompt)?;
        let room = self.session.tokens().len() + self.session.remaining();
        ensure!(
            prompt.len() < room,
            "the conversation has {} tokens and the model's context {room}; /reset starts a new one",
            prompt.len()
        );
        self.stopped.store(false, Ordering::Relaxed);
        let mut stdout = io::stdout().lock();
        let mut written = Ok(());
        let on_text = |piece: &str| {
            written = stdout.write_all(piece.as_bytes()).and_then(|()| stdout.flush());
            let wanted = written.is_ok() && !self.stopped.load(Ordering::Relaxed);
            if wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let generation = generate_in(&mut self.session, self.tokenizer, &prompt, &self.generating, on_text)?;
        written?;
        writeln!(stdout)?;
        drop(stdout);
        // Where nobody listens, the answer is as if it had not been interrupted.
        self.stopped.store(true, Ordering::Relaxed);
        if generation.stop == Stop::ContextFull {
            console::note(format_args!("note: the model's context is full; /reset starts a new conversation\n"));
        }
        tell_speed(&generation);
        Ok(generation.text)
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let at = || path.display().to_string();
        ensure!(!path.exists(), "{}: a file stands here; name another one", at());
        let json = serde_json::to_string_pretty(&self.conversation.messages)?;
        fs::write(path, json + "\n").with_context(at)?;
        console::note(format_args!("{}: {} messages\n", at(), self.conversation.messages.len()));
        Ok(())
    }

    fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        let at = || path.display().to_string();
        let json = fs::read(path).with_context(at)?;
        let messages: Vec<Message> = serde_json::from_slice(&json).with_context(at)?;
        let is_message =
            |message: &Message| ["role", "content"].iter().all(|key| message.get(*key).is_some_and(|v| v.is_string()));
        ensure!(
            messages.iter().all(is_message),
            "{}: expected a list of objects with a text `role` and `content`",
            at()
        );
        self.conversation.messages = messages;
        Ok(())
    }
}

/// A variable of the template out of `NAME=VALUE`.
fn variable(text: &str) -> anyhow::Result<(String, serde_json::Value)> {
    let (name, value) = text.split_once('=').with_context(|| format!("--template {text}: expected NAME=VALUE"))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((name.to_owned(), value))
}

/// Lets Ctrl-C stop an answer; between answers it ends the program, as ever.
fn on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    const INTERRUPTED: i32 = 130;
    let stopped = Arc::new(AtomicBool::new(true));
    let seen = Arc::clone(&stopped);
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
    })?;
    Ok(stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_json_or_text() {
        assert_eq!(variable("enable_thinking=false").unwrap(), ("enable_thinking".into(), false.into()));
        assert_eq!(variable("name=a=b").unwrap(), ("name".into(), "a=b".into()));
        assert!(variable("x").unwrap_err().to_string().contains("expected NAME=VALUE"));
    }
}
