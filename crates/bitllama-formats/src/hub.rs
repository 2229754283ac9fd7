//! Models by hub id: `org/name`, `org/name@revision`, and `org/name:FILE.gguf` for one GGUF file.
//!
//! Files land in the cache that `huggingface_hub` uses too (`models--org--name/snapshots/COMMIT/..`), so that neither
//! downloads what the other has. A download that was cut goes on where it ended, at once or in a later call.

use std::cell::Cell;
use std::fs;
use std::io::{ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bitllama_core::excerpt;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::{ProgressBar, ProgressStyle};

use crate::hf::{CONFIG, INDEX, TOKENIZER, WEIGHTS, advice, is_file_name, shards};
use crate::{Error, Result, companions, gguf};

/// How often a file is asked for before a cut connection is an error.
const ATTEMPTS: u32 = 4;
/// Pause after the first cut; twice as long after the second, and so on.
const PAUSE: Duration = Duration::from_millis(300);

/// Where models come from and go to.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Server, without a trailing slash.
    pub endpoint: String,
    /// Folder of the cache, that which holds `models--org--name`.
    pub cache: PathBuf,
    /// Access token.
    pub token: Option<String>,
    /// Whether only the cache is looked at.
    pub offline: bool,
    /// Whether a bar on stderr shows the progress of a download.
    pub progress: bool,
}

impl HubConfig {
    /// Settings of the environment: `HF_ENDPOINT`, `HF_HOME` (and `HF_HUB_CACHE`), `HF_TOKEN` (or the file `token` in
    /// `HF_HOME`), `HF_HUB_OFFLINE`. Progress is shown if stderr is a terminal.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
            cache.unwrap_or_else(|| ".cache".into()).join("huggingface")
        });
        let token = || fs::read_to_string(home.join("token")).ok().map(|t| t.trim().to_string());
        let offline = set("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_lowercase();
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        HubConfig {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token: set("HF_TOKEN").or_else(token).filter(|t| !t.is_empty()),
            offline: matches!(offline.as_str(), "1" | "true" | "yes" | "on"),
            progress: std::io::stderr().is_terminal(),
        }
    }

    /// A model's snapshot folder, or the path of one GGUF file; what is not in the cache is downloaded. A branch that
    /// is in the cache is not asked for again, so a model stays the same until its folder in the cache is removed.
    ///
    /// # Errors
    /// [`Error::Hub`] if `id` is no id, the model or one of its files does not exist, asks for a token, or is not in
    /// the cache when offline, or the server cannot be reached. Where the model has weights or a tokenizer in a form that is
    /// not read, it says how to convert them.
    pub fn fetch(&self, id: &str) -> Result<PathBuf> {
        let id = Id::parse(id)
            .ok_or_else(|| Error::Hub(format!("{} is no id such as org/name or org/name:FILE.gguf", excerpt(id))))?;
        let session = Session::new(self, &id)?;
        match id.file {
            Some(file) => session.gguf(file),
            None => session.snapshot(),
        }
    }

    /// A local path if one exists under `text`, else what [`HubConfig::fetch`] gives for it, or for the id of a short name.
    ///
    /// # Errors
    /// [`Error::Hub`] if it is neither, and those of [`HubConfig::fetch`].
    pub fn resolve(&self, text: &str) -> Result<PathBuf> {
        if Path::new(text).exists() {
            return Ok(text.into());
        }
        if let Some(id) = id_of_short_name(text) {
            return self.fetch(id);
        }
        let local = match text.split_once(['/', '\\']) {
            Some((folder, _)) if Path::new(folder).is_dir() => true,
            _ => [".gguf", ".npz", ".safetensors"].iter().any(|end| text.ends_with(end)) && !text.contains(':'),
        };
        if !local && looks_like_id(text) {
            return self.fetch(text);
        }
        // No system has longer paths.
        let name = if text.len() > 4096 { excerpt(text) } else { text.into() };
        Err(Error::invalid(&*name, "no such file or folder, and no hub id such as org/name"))
    }

    /// The local path of a model's `config.json`: that of an existing folder, or fetched alone by hub id. `None` for a
    /// file, or an id that names one.
    ///
    /// # Errors
    /// Those of [`HubConfig::resolve`].
    pub fn resolve_config(&self, text: &str) -> Result<Option<PathBuf>> {
        if Path::new(text).is_dir() {
            return Ok(Some(Path::new(text).join(CONFIG)));
        }
        let text = id_of_short_name(text).filter(|_| !Path::new(text).exists()).unwrap_or(text);
        match Id::parse(text) {
            Some(id) if !Path::new(text).exists() && id.file.is_none() => {
                Session::new(self, &id)?.required(CONFIG, "").map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// [`HubConfig::fetch`] with the settings of the environment.
///
/// # Errors
/// Those of [`HubConfig::fetch`].
pub fn fetch(id: &str) -> Result<PathBuf> {
    HubConfig::from_env().fetch(id)
}

/// [`HubConfig::resolve`] with the settings of the environment.
///
/// # Errors
/// Those of [`HubConfig::resolve`].
pub fn resolve(text: &str) -> Result<PathBuf> {
    HubConfig::from_env().resolve(text)
}

/// Short names of models on the hub, which serve wherever a model is named.
const SHORT_NAMES: [(&str, &str); 9] = [
    ("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
    ("gemma-2b", "google/gemma-2b"),
    ("llama-7b", "meta-llama/Llama-2-7b-hf"),
    ("llama-3.2-1b", "meta-llama/Llama-3.2-1B"),
    ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B"),
    ("qwen2.5-coder-1.5b", "Qwen/Qwen2.5-Coder-1.5B-Instruct"),
    ("gemma-3-270m", "google/gemma-3-270m"),
    ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
];

/// The hub id of a short name.
pub fn id_of_short_name(name: &str) -> Option<&'static str> {
    SHORT_NAMES.iter().find(|(short, _)| *short == name).map(|(_, id)| *id)
}

/// All short names, for help and error messages.
pub fn short_names() -> String {
    SHORT_NAMES.map(|(short, _)| short).join(", ")
}

/// Whether `text` has the form of a hub id; nothing is looked up.
pub fn looks_like_id(text: &str) -> bool {
    Id::parse(text).is_some()
}

/// `org/name[@revision][:FILE.gguf]`.
struct Id<'a> {
    model: &'a str,
    revision: &'a str,
    file: Option<&'a str>,
}

impl<'a> Id<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (text, file) = text.split_once(':').map_or((text, None), |(id, file)| (id, Some(file)));
        let (model, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = model.split_once('/')?;
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let part =
            |p: &str| p.len() <= 96 && p.chars().all(letter) && p.starts_with(|c: char| c.is_ascii_alphanumeric());
        let revision_part = |p: &str| is_file_name(p) && p.chars().all(letter);
        let gguf = |f: &str| f.split('/').all(is_file_name) && f.to_ascii_lowercase().ends_with(".gguf");
        let sound = part(org) && part(name) && revision.split('/').all(revision_part) && file.is_none_or(gguf);
        sound.then_some(Id { model, revision, file })
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.model.into(), RepoType::Model, self.revision.into())
    }
}

/// One model, as the settings say.
struct Session<'a> {
    config: &'a HubConfig,
    id: &'a Id<'a>,
    cache: Cache,
    api: Api,
    remote: ApiRepo,
}

impl<'a> Session<'a> {
    fn new(config: &'a HubConfig, id: &'a Id<'a>) -> Result<Self> {
        let cache = Cache::new(config.cache.clone());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(config.endpoint.clone())
            .with_token(config.token.clone())
            .with_user_agent("bitllama-train", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|e| Error::Hub(e.to_string()))?;
        let remote = api.repo(id.repo());
        Ok(Session { config, id, cache, api, remote })
    }

    fn snapshot(&self) -> Result<PathBuf> {
        let mut files = self.files()?;
        if files.iter().any(|file| file.parent() != files[0].parent()) {
            // The branch moved on meanwhile; now all files come from where it stands.
            files = self.files()?;
        }
        let folder = files[0].parent().unwrap_or(Path::new("."));
        match files.iter().find(|file| file.parent() != Some(folder)) {
            Some(file) => Err(self.error(format!("{} changed while it was fetched; try again", file.display()))),
            None => Ok(folder.to_path_buf()),
        }
    }

    /// All files of a snapshot, `config.json` first.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let config = self.required(CONFIG, "; one GGUF file is asked for as org/name:FILE.gguf")?;
        let tokenizer = match self.get(TOKENIZER)? {
            Some(tokenizer) => tokenizer,
            None => return Err(self.missing(TOKENIZER, "", &advice::VOCABULARIES)),
        };
        let mut files = vec![config, tokenizer];
        for name in companions::NAMES {
            files.extend(self.get(name)?);
        }
        if let Some(weights) = self.get(WEIGHTS)? {
            files.push(weights);
        } else {
            let Some(index) = self.get(INDEX)? else {
                return Err(self.missing(INDEX, &format!(", and no {WEIGHTS}"), &advice::PICKLED));
            };
            for shard in shards(&index)? {
                files.push(self.required(&shard, ", which its index names")?);
            }
            files.push(index);
        }
        Ok(files)
    }

    /// One GGUF file, with the other parts of its model if it is one of several.
    fn gguf(&self, file: &str) -> Result<PathBuf> {
        let (folder, name) =
            file.rsplit_once('/').map_or(("", file), |(_, name)| (&file[..file.len() - name.len()], name));
        for part in gguf::part_names(name).into_iter().flatten().filter(|part| part != name) {
            self.required(&format!("{folder}{part}"), &format!(", a part of {name}"))?;
        }
        self.required(file, "")
    }

    fn required(&self, file: &str, hint: &str) -> Result<PathBuf> {
        self.get(file)?.ok_or_else(|| self.missing(file, hint, &[]))
    }

    /// The error about a file that is not there, with what to do if the model has one of the `others` in its place.
    fn missing(&self, file: &str, hint: &str, others: &[&str]) -> Error {
        if let Some(found) = others.iter().find(|other| self.has(other)) {
            let Id { model, revision, .. } = self.id;
            // As the last part of the id, or a name that says the revision too.
            let name = model.rsplit('/').next().unwrap_or(model);
            let (from, to) = match *revision {
                "main" => (model.to_string(), name.to_string()),
                revision => {
                    (format!("{model}', revision='{revision}"), format!("{name}-{}", revision.replace('/', "-")))
                }
            };
            let wanted = if file == INDEX { WEIGHTS } else { file };
            let advice = advice::instead(wanted, found, &from, &to, false);
            return self.error(format!("{advice}, then open the folder {to}"));
        }
        let place = if self.config.offline { "in the cache (HF_HUB_OFFLINE is set)" } else { "on the hub" };
        self.error(format!("there is no {file} {place}{hint}"))
    }

    /// Whether the model has a file, without fetching it. One that cannot be asked for counts as not there.
    fn has(&self, file: &str) -> bool {
        self.cache.repo(self.id.repo()).get(file).is_some()
            || !self.config.offline && self.api.metadata(&self.remote.url(file)).is_ok()
    }

    /// A file from the cache or the server; none if it is not there.
    fn get(&self, file: &str) -> Result<Option<PathBuf>> {
        let cached = self.cache.repo(self.id.repo()).get(file);
        if cached.is_some() || self.config.offline || self.known_missing(file).is_some_and(|mark| mark.exists()) {
            return Ok(cached);
        }
        let found = self.download(file)?;
        if found.is_none()
            && let Some(mark) = self.known_missing(file)
        {
            // Only spares a question next time: a failure does not matter.
            let _ = mark.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&mark, b""));
        }
        Ok(found)
    }

    /// The mark that `huggingface_hub` sets too for a file that the commit in the cache does not have.
    fn known_missing(&self, file: &str) -> Option<PathBuf> {
        let repo = self.cache.repo(self.id.repo());
        let folder = self.config.cache.join(self.id.repo().folder_name());
        // The commit is only known from a file in its snapshot.
        let commit = repo.get(CONFIG)?.parent()?.file_name()?.to_os_string();
        Some(folder.join(".no_exist").join(commit).join(file))
    }

    fn download(&self, file: &str) -> Result<Option<PathBuf>> {
        let mut cut = String::new();
        for attempt in 0..ATTEMPTS {
            std::thread::sleep(PAUSE * attempt);
            let size = Rc::new(Cell::new(0));
            let meter = Meter::new(self.config.progress, size.clone());
            match self.remote.download_with_progress(file, meter) {
                Ok(path) => match self.check_size(&path, size.get())? {
                    None => return Ok(Some(path)),
                    Some(fault) => cut = fault,
                },
                Err(ApiError::RequestError(error)) => match status(&error.to_string()) {
                    Some(404) => return Ok(None),
                    // The part that is there is whole already, or longer than the file.
                    Some(416) => cut = self.discard_part(file, "does not fit what was there of it")?,
                    Some(code @ 500..) => cut = format!("the server answers with status {code}"),
                    Some(code) => return Err(self.refused(file, code)),
                    None => return Err(self.error(format!("cannot reach {}: {error}", self.config.endpoint))),
                },
                Err(ApiError::InvalidResume) => {
                    cut = self.discard_part(file, "is shorter than what was there of it")?
                }
                Err(ApiError::IoError(error)) if !is_local(error.kind()) => {
                    cut = format!("the connection broke: {error}")
                }
                Err(ApiError::LockAcquisition(_)) => {
                    return Err(self.error(format!("another process is downloading {file}")));
                }
                Err(error) => return Err(self.error(format!("{file}: {error}"))),
            }
        }
        Err(self.error(format!("{file}: {cut}; the next call goes on from here")))
    }

    /// hf-hub keeps what came, were it too little or, where a server knows no ranges, too much.
    fn check_size(&self, path: &Path, expected: u64) -> Result<Option<String>> {
        let found = fs::metadata(path).map_err(Error::io(path))?.len();
        if found == expected {
            return Ok(None);
        }
        let blob = fs::canonicalize(path).map_err(Error::io(path))?;
        fs::remove_file(path).map_err(Error::io(path))?;
        fs::remove_file(&blob).or_else(missing_is_fine).map_err(Error::io(&blob))?;
        Ok(Some(format!("{found} bytes came, expected {expected}")))
    }

    fn discard_part(&self, file: &str, reason: &str) -> Result<String> {
        let metadata = self.api.metadata(&self.remote.url(file));
        let metadata = metadata.map_err(|e| self.error(format!("{file}: {e}")))?;
        let part = self.cache.repo(self.id.repo()).blob_path(metadata.etag()).with_extension("part");
        fs::remove_file(&part).or_else(missing_is_fine).map_err(Error::io(&part))?;
        Ok(reason.to_string())
    }

    fn refused(&self, file: &str, code: u16) -> Error {
        let reason = match (code, &self.config.token) {
            (401, None) => "does not exist or asks for a token: set HF_TOKEN".to_string(),
            (401, Some(_)) => "does not exist, or HF_TOKEN is not valid".to_string(),
            (403, None) => "may not be read without a token: set HF_TOKEN".to_string(),
            (403, Some(_)) => "may not be read with this HF_TOKEN: ask for access on the model's page".to_string(),
            (code, _) => format!("cannot be had: the server answers with status {code}"),
        };
        self.error(format!("{file} {reason}"))
    }

    fn error(&self, reason: String) -> Error {
        Error::Hub(format!("{}: {}", self.id.model, crate::hf::one_line(&reason)))
    }
}

fn missing_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Errors of the disk, which asking again does not help.
fn is_local(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::PermissionDenied
            | ErrorKind::NotFound
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotADirectory
            | ErrorKind::FileTooLarge
    )
}

/// The status in the text of ureq's error, whose type hf-hub does not export.
fn status(message: &str) -> Option<u16> {
    message.strip_prefix("http status: ")?.parse().ok()
}

/// Notes the size of a file, and shows how much is there.
struct Meter {
    bar: ProgressBar,
    size: Rc<Cell<u64>>,
}

impl Meter {
    fn new(shown: bool, size: Rc<Cell<u64>>) -> Self {
        Meter { bar: if shown { ProgressBar::no_length() } else { ProgressBar::hidden() }, size }
    }
}

impl Progress for Meter {
    fn init(&mut self, size: usize, file: &str) {
        self.size.set(size as u64);
        let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        self.bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.set_length(size as u64);
        self.bar.set_position(0);
        self.bar.set_message(file.to_string());
    }

    fn update(&mut self, size: usize) {
        self.bar.inc(size as u64);
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        for id in
            ["org/name", "HuggingFaceTB/SmolLM2-135M", "a/b@main", "a/b@refs/pr/1", "a/b:x.Q4_1.gguf", "a/b:d/x.GGUF"]
        {
            assert!(looks_like_id(id), "{id}");
        }
        for text in [
            "",
            "name",
            "/a/b",
            "./a",
            "../a",
            "a/b/c",
            "a/",
            "/b",
            "a b/c",
            "a/b:",
            "a/b:x.bin",
            "a/b:../x.gguf",
            "a/b@",
            "a/b@..",
            "a/é",
            "~/b",
            "a/b@x/../../y",
        ] {
            assert!(!looks_like_id(text), "{text}");
        }
    }
}
