//! Many generations with one model at a time: a thread that runs all of them in step, and a handle to give it more.
//!
//! | module | subject |
//! |---|---|
//! | `scheduler` | which tokens of which requests run in the next pass |
//! | `slot` | a request in progress |
//! | `positions` | keys and values of a text, in the model and in its draft |
//! | `prefix` | those of prompts, kept for the next request that begins the same way |
//! | `logprobs` | logarithms of probabilities that answers have |
//! | `metrics` | counters for `/metrics` |

mod logprobs;
mod metrics;
mod positions;
mod prefix;
mod scheduler;
mod slot;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use bitllama_runtime::{Decoder, GenerationOptions, Stop};
use bitllama_structured::{Constraint, Spelling, Tools, Vocabulary};
use tokenizers::Tokenizer;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub use logprobs::TokenLogprob;
pub use metrics::Metrics;
use positions::Positions;

/// A text to continue.
#[derive(Clone)]
pub struct Request {
    /// Tokens to start from, at least one.
    pub prompt: Vec<u32>,
    /// Length, choice and end.
    pub options: GenerationOptions,
    /// Likeliest tokens to give with each generated one, beside itself; `None` for no probabilities.
    pub logprobs: Option<usize>,
    /// Whether tokens of the prompt are given with their probabilities too.
    pub prompt_logprobs: bool,
    /// Whether end tokens of the model are tokens as others; not under a constraint.
    pub ignore_eos: bool,
    /// Grammar of the answer, at its start.
    pub constraint: Option<Constraint>,
    /// Functions that the model may call: special tokens that mark calls become text.
    pub tools: Option<Arc<Tools>>,
}

/// A step of a generation.
#[derive(Debug)]
pub enum Event {
    /// The prompt is computed.
    Prompt(Prompt),
    /// A token was generated.
    Token(Generated),
    /// The generation is over; nothing follows.
    Done(Done),
    /// The generation failed; nothing follows.
    Failed(String),
}

/// A prompt that is computed.
#[derive(Debug, Default)]
pub struct Prompt {
    /// Tokens that came from the prefix cache.
    pub cached: usize,
    /// Probabilities of each token after the first, where they were asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// A token and the text that is whole with it.
#[derive(Debug)]
pub struct Generated {
    /// The token.
    pub token: u32,
    /// Text that goes out now; it may be that of several tokens, or none.
    pub text: String,
    /// Its probability, where it was asked for.
    pub logprob: Option<TokenLogprob>,
}

/// The end of a generation.
#[derive(Debug)]
pub struct Done {
    /// The reason.
    pub stop: Stop,
    /// Text that was held back until now.
    pub text: String,
    /// Tokens generated.
    pub tokens: usize,
}

/// Bounds of an engine.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of keys and values of all requests and of the prefix cache.
    pub kv_bytes: usize,
    /// Requests that run together, at most.
    pub batch: usize,
    /// Requests that wait, at most.
    pub queue: usize,
    /// Tokens of prompts that run in one pass beside the decoding ones.
    pub chunk: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { kv_bytes: 2 << 30, batch: 64, queue: 256, chunk: 128 }
    }
}

/// A request that was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There are as many waiting requests as may wait.
    #[error("{0} requests are waiting already; try again later")]
    QueueFull(usize),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The text does not fit.
    #[error(
        "the prompt has {prompt} tokens and up to {max_tokens} are to be generated, the model's context has {context}"
    )]
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to generate.
        max_tokens: usize,
        /// Positions of the context.
        context: usize,
    },
    /// Keys and values of the text take more memory than the server has for all texts.
    #[error("keys and values of {positions} tokens take {needed} bytes, the server has {budget} for all requests")]
    Memory {
        /// Tokens of prompt and answer.
        positions: usize,
        /// Bytes that they take.
        needed: usize,
        /// Bytes that there are.
        budget: usize,
    },
    /// A parameter or token that is out of its range.
    #[error(transparent)]
    Invalid(#[from] bitllama_runtime::Error),
}

/// A request with the way back to who made it.
struct Job {
    request: Request,
    events: UnboundedSender<Event>,
    submitted: std::time::Instant,
}

/// A model that answers requests. Dropping it ends its thread when the requests in progress are done.
pub struct Engine {
    model: Arc<Model>,
    limits: Limits,
    jobs: Mutex<Option<Sender<Job>>>,
    metrics: Arc<Metrics>,
    thread: Mutex<Option<JoinHandle<()>>>,
    abort: Arc<AtomicBool>,
}

/// The parts of a model that threads share.
pub(crate) struct Model {
    pub decoder: Decoder,
    /// A smaller model of the same tokens that guesses what follows.
    pub draft: Option<Decoder>,
    pub tokenizer: Arc<Tokenizer>,
    /// How tokens spell bytes; none for a tokenizer of another kind.
    pub spelling: Option<Spelling>,
    /// Made when the first request needs it, in a second or so.
    pub vocabulary: OnceLock<bitllama_structured::Result<Arc<Vocabulary>>>,
}

impl Model {
    fn vocabulary(&self) -> bitllama_structured::Result<Arc<Vocabulary>> {
        let made = self.vocabulary.get_or_init(|| {
            let config = self.decoder.config();
            let ends: Vec<u32> = config.end_tokens().collect();
            Vocabulary::new(&self.tokenizer, config.vocab_size, &ends).map(Arc::new)
        });
        made.clone()
    }
}

impl Engine {
    /// Starts the thread of a model, whose tokens a `draft` with the same tokenizer may guess.
    pub fn start(decoder: Decoder, tokenizer: Tokenizer, draft: Option<Decoder>, limits: Limits) -> Self {
        let (spelling, vocabulary) = (Spelling::of(&tokenizer).ok(), OnceLock::new());
        let model = Arc::new(Model { decoder, draft, tokenizer: Arc::new(tokenizer), spelling, vocabulary });
        let (metrics, abort) = (Arc::new(Metrics::default()), Arc::new(AtomicBool::new(false)));
        let (sender, receiver) = mpsc::channel();
        let scheduler = scheduler::Scheduler::new(Arc::clone(&model), limits, Arc::clone(&metrics), Arc::clone(&abort));
        let thread = std::thread::spawn(move || scheduler.run(&receiver));
        Self { model, limits, jobs: Mutex::new(Some(sender)), metrics, thread: Mutex::new(Some(thread)), abort }
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.model.tokenizer
    }

    /// How its tokens spell bytes, where that is known.
    pub fn spelling(&self) -> Option<&Spelling> {
        self.model.spelling.as_ref()
    }

    /// The model's tokens as grammars see them.
    ///
    /// # Errors
    /// A tokenizer whose tokens have no bytes.
    pub fn vocabulary(&self) -> bitllama_structured::Result<Arc<Vocabulary>> {
        self.model.vocabulary()
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.model.decoder
    }

    /// Counters of what it does.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Hands a request over. Its events come through the receiver; dropping that cancels the request.
    ///
    /// # Errors
    /// [`Refused`] for a request that can never run, or not now.
    pub fn submit(&self, mut request: Request) -> Result<UnboundedReceiver<Event>, Refused> {
        self.check(&mut request)?;
        let waiting = self.metrics.waiting();
        if waiting >= self.limits.queue {
            self.metrics.refuse();
            return Err(Refused::QueueFull(waiting));
        }
        let (events, receiver) = unbounded_channel();
        let job = Job { request, events, submitted: std::time::Instant::now() };
        let jobs = self.jobs.lock().map_err(|_| Refused::Stopping)?;
        self.metrics.enqueue();
        jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or(Refused::Stopping)?;
        Ok(receiver)
    }

    /// Checks a request, and lets its length end with the context where that was not asked for in so many tokens.
    fn check(&self, request: &mut Request) -> Result<(), Refused> {
        let config = self.model.decoder.config();
        bitllama_runtime::evaluate::check_tokens(request.prompt.iter(), config.vocab_size)?;
        if request.prompt.is_empty() {
            return Err(Refused::Invalid(bitllama_runtime::Error::EmptyPrompt));
        }
        request.options.sampling.check()?;
        let (prompt, context) = (request.prompt.len(), config.max_position_embeddings);
        if prompt > context {
            return Err(Refused::Context { prompt, max_tokens: request.options.max_tokens, context });
        }
        // The last token needs no position: nothing is computed from it.
        request.options.max_tokens = request.options.max_tokens.min(context - prompt + 1);
        let positions = prompt + request.options.max_tokens;
        let needed = Positions::bytes_for(&self.model, positions);
        if needed > self.limits.kv_bytes {
            self.metrics.refuse();
            return Err(Refused::Memory { positions, needed, budget: self.limits.kv_bytes });
        }
        Ok(())
    }

    /// Takes no more requests, and returns when those in progress are done.
    pub fn drain(&self) {
        drop(self.jobs.lock().map(|mut jobs| jobs.take()));
        if let Some(thread) = self.thread.lock().ok().and_then(|mut thread| thread.take()) {
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }

    /// Ends all requests in progress.
    pub fn abort(&self) {
        self.abort.store(true, Ordering::Relaxed);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.abort();
        self.drain();
    }
}
