//! The hub client against a server on the loopback that answers as the hub does.
#![cfg(feature = "hub")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bitllama_formats::hub::HubConfig;
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One answered request: path, range, authorization.
type Request = (String, String, String);

#[derive(Default)]
struct State {
    files: Mutex<HashMap<String, Vec<u8>>>,
    commit: Mutex<String>,
    log: Mutex<Vec<Request>>,
    token: Mutex<Option<String>>,
    /// How many bodies still break off in the middle.
    cuts: AtomicUsize,
    /// Whether ranges are ignored on the way of large files.
    no_ranges: std::sync::atomic::AtomicBool,
}

struct Hub {
    state: Arc<State>,
    endpoint: String,
    cache: TempDir,
}

impl Hub {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        *state.commit.lock().unwrap() = COMMIT.into();
        for (name, bytes) in files {
            state.files.lock().unwrap().insert(name.to_string(), bytes.to_vec());
        }
        let (shared, base) = (state.clone(), endpoint.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that is gone is no concern of the server.
                let _ = answer(stream.unwrap(), &shared, &base);
            }
        });
        Hub { state, endpoint, cache: tempfile::tempdir().unwrap() }
    }

    fn config(&self) -> HubConfig {
        HubConfig {
            endpoint: self.endpoint.clone(),
            cache: self.cache.path().to_path_buf(),
            token: None,
            offline: false,
            progress: false,
        }
    }

    fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.log.lock().unwrap())
    }

    fn snapshot(&self) -> std::path::PathBuf {
        self.cache.path().join("models--org--name/snapshots").join(COMMIT)
    }
}

/// One request a connection. Files named `*.safetensors` and `*.gguf` are redirected, as large files are on the hub.
fn answer(mut stream: TcpStream, state: &State, base: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let path = lines.next().unwrap()?.split(' ').nth(1).unwrap().to_string();
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_string());
    }
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    state.log.lock().unwrap().push((path.clone(), header("range"), header("authorization")));

    let mut head = |status: &str, more: &str| {
        write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n")?;
        stream.flush()
    };
    let token = state.token.lock().unwrap().clone();
    if token.is_some_and(|t| header("authorization") != format!("Bearer {t}")) && !path.starts_with("/cdn/") {
        return head("401 Unauthorized", "Content-Length: 0\r\n");
    }
    let file = path.strip_prefix("/cdn/").or(path.strip_prefix("/org/name/resolve/main/"));
    let Some(bytes) = file.and_then(|f| state.files.lock().unwrap().get(f).cloned()) else {
        return head("404 Not Found", "Content-Length: 0\r\n");
    };
    let (file, commit) = (file.unwrap(), state.commit.lock().unwrap().clone());
    let large = file.ends_with(".safetensors") || file.ends_with(".gguf");
    let tag = format!("{}-{commit}", file.replace(['/', '.'], "-"));
    if large && !path.starts_with("/cdn/") {
        let more = format!(
            "Location: {base}/cdn/{file}\r\nX-Linked-Etag: \"{tag}\"\r\nX-Repo-Commit: {commit}\r\nContent-Length: 0\r\n"
        );
        return head("302 Found", &more);
    }
    let range = header("range");
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let last = last.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
    if first > last {
        return head("416 Range Not Satisfiable", "Content-Length: 0\r\n");
    }
    let probe = range == "bytes=0-0";
    let whole = !probe && state.no_ranges.load(Ordering::SeqCst);
    let part = if whole { &bytes[..] } else { &bytes[first..=last] };
    let more = format!(
        "Content-Range: bytes {first}-{last}/{}\r\nETag: \"{tag}\"\r\nX-Repo-Commit: {commit}\r\nContent-Length: {}\r\n",
        bytes.len(),
        part.len()
    );
    head(if whole { "200 OK" } else { "206 Partial Content" }, &more)?;
    let cut =
        large && !probe && state.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
    stream.write_all(if cut { &part[..part.len() / 2] } else { part })
}

fn small_model() -> Vec<(&'static str, &'static [u8])> {
    vec![
        ("config.json", b"{}"),
        ("tokenizer.json", b"{ }"),
        ("tokenizer_config.json", b"{  }"),
        ("model.safetensors", b"0123456789abcdefghij"),
    ]
}

#[test]
fn a_model_is_fetched_once_and_then_found_offline() {
    let hub = Hub::new(&small_model());
    let folder = hub.config().fetch("org/name").unwrap();
    assert_eq!(folder, hub.snapshot());
    for (name, bytes) in small_model() {
        assert_eq!(fs::read(folder.join(name)).unwrap(), bytes, "{name}");
    }
    assert!(hub.requests().iter().all(|(_, _, authorization)| authorization.is_empty()));
    // Not even files that the model lacks are asked for again.
    assert_eq!(hub.config().resolve("org/name").unwrap(), folder);
    assert_eq!(hub.requests(), []);
    let offline = HubConfig { endpoint: "http://127.0.0.1:9".into(), offline: true, ..hub.config() };
    assert_eq!(offline.fetch("org/name").unwrap(), folder);
}

#[test]
fn offline_names_the_file_that_is_not_in_the_cache() {
    let hub = Hub::new(&small_model());
    let offline = HubConfig { offline: true, ..hub.config() };
    let message = offline.fetch("org/name").unwrap_err().to_string();
    assert!(message.contains("org/name: there is no config.json in the cache (HF_HUB_OFFLINE is set)"), "{message}");
    hub.config().fetch("org/name").unwrap();
    fs::remove_file(hub.snapshot().join("tokenizer.json")).unwrap();
    hub.requests();
    let message = offline.fetch("org/name").unwrap_err().to_string();
    assert!(message.contains("no tokenizer.json in the cache"), "{message}");
    assert_eq!(hub.requests(), []);
}

#[test]
fn shards_of_an_index_are_fetched() {
    let mut files = small_model();
    files.pop();
    let index =
        br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    files.push(("model.safetensors.index.json", index));
    files.push(("model-1.safetensors", b"one"));
    let hub = Hub::new(&files);
    let message = hub.config().fetch("org/name").unwrap_err().to_string();
    assert!(message.contains("no model-2.safetensors on the hub, which its index names"), "{message}");
    let hub = Hub::new(&[&files[..], &[("model-2.safetensors", b"two")]].concat());
    let folder = hub.config().fetch("org/name").unwrap();
    assert_eq!(fs::read(folder.join("model-2.safetensors")).unwrap(), b"two");
    hub.requests();
    assert_eq!(hub.config().fetch("org/name").unwrap(), folder);
    assert_eq!(hub.requests(), []);
}

#[test]
fn a_model_in_another_form_is_not_fetched_but_told_how_to_convert() {
    let without = |left_out: &str| small_model().into_iter().filter(|(name, _)| *name != left_out).collect::<Vec<_>>();
    let weights = [&without("model.safetensors")[..], &[("pytorch_model.bin", b"pickle")]].concat();
    let hub = Hub::new(&weights);
    let message = hub.config().fetch("org/name").unwrap_err().to_string();
    let command = concat!(
        "has only pytorch_model.bin, no model.safetensors; convert it with: python -c \"import transformers as t; ",
        "t.AutoModelForCausalLM.from_pretrained('org/name').save_pretrained('name'); ",
        "t.AutoTokenizer.from_pretrained('org/name').save_pretrained('name')\", then open the folder name",
    );
    assert!(message.ends_with(command), "{message}");
    let asked = |(path, range, _): &Request| path.ends_with("pytorch_model.bin") && range != "bytes=0-0";
    assert!(!hub.requests().iter().any(asked), "nothing of the pickle is downloaded");

    let hub = Hub::new(&[&without("tokenizer.json")[..], &[("tokenizer.model", b"sp")]].concat());
    let message = hub.config().fetch("org/name").unwrap_err().to_string();
    assert!(message.contains("org/name: has only tokenizer.model, no tokenizer.json; convert it with: "), "{message}");

    let hub = Hub::new(&without("model.safetensors"));
    let message = hub.config().fetch("org/name").unwrap_err().to_string();
    assert!(message.contains("no model.safetensors.index.json on the hub, and no model.safetensors"), "{message}");
}

#[test]
fn one_gguf_file_is_fetched_alone() {
    let hub = Hub::new(&[("x.Q4_1.gguf", b"GGUF")]);
    let path = hub.config().fetch("org/name:x.Q4_1.gguf").unwrap();
    assert_eq!(path, hub.snapshot().join("x.Q4_1.gguf"));
    assert_eq!(fs::read(path).unwrap(), b"GGUF");
    let message = hub.config().fetch("org/name").unwrap_err().to_string();
    assert!(message.contains("there is no config.json on the hub; one GGUF file is asked for as"), "{message}");
}

/// Ranges in which the weights were asked for, the probes for their size left out.
fn ranges(hub: &Hub) -> Vec<String> {
    let all = hub.requests().into_iter();
    all.filter(|(path, range, _)| path == "/cdn/model.safetensors" && range != "bytes=0-0")
        .map(|(_, range, _)| range)
        .collect()
}

fn weights_are_whole(folder: &Path) {
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), b"0123456789abcdefghij");
}

#[test]
fn a_cut_download_goes_on_where_it_ended() {
    let hub = Hub::new(&small_model());
    hub.state.cuts.store(2, Ordering::SeqCst);
    weights_are_whole(&hub.config().fetch("org/name").unwrap());
    assert_eq!(ranges(&hub), ["bytes=0-", "bytes=10-", "bytes=15-"]);
}

#[test]
fn a_download_given_up_goes_on_in_the_next_call() {
    let hub = Hub::new(&small_model());
    hub.state.cuts.store(4, Ordering::SeqCst);
    let message = hub.config().fetch("org/name").unwrap_err().to_string();
    assert!(message.contains("model.safetensors: the connection broke") && !message.contains('\n'), "{message}");
    assert!(!hub.snapshot().join("model.safetensors").exists());
    ranges(&hub);
    weights_are_whole(&hub.config().fetch("org/name").unwrap());
    // Of 20 bytes, 10, 5, 2 and 1 have come.
    assert_eq!(ranges(&hub), ["bytes=18-"]);
}

#[test]
fn a_part_that_is_whole_or_too_long_is_fetched_anew() {
    for part in [&b"0123456789abcdefghij"[..], b"0123456789abcdefghij and more"] {
        let hub = Hub::new(&small_model());
        let blobs = hub.cache.path().join("models--org--name/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("model-safetensors-{COMMIT}.part")), part).unwrap();
        weights_are_whole(&hub.config().fetch("org/name").unwrap());
    }
}

#[test]
fn a_server_without_ranges_does_not_spoil_a_file() {
    let hub = Hub::new(&small_model());
    hub.state.no_ranges.store(true, Ordering::SeqCst);
    hub.state.cuts.store(1, Ordering::SeqCst);
    weights_are_whole(&hub.config().fetch("org/name").unwrap());
}

#[test]
fn files_of_a_snapshot_come_from_one_commit() {
    let hub = Hub::new(&small_model());
    hub.config().fetch("org/name").unwrap();
    let old = hub.snapshot();
    fs::remove_file(old.join("model.safetensors")).unwrap();
    *hub.state.commit.lock().unwrap() = "f".repeat(40);
    let folder = hub.config().fetch("org/name").unwrap();
    assert!(folder.ends_with("f".repeat(40)));
    weights_are_whole(&folder);
    assert!(folder.join("config.json").exists());
}

#[test]
fn a_token_is_sent_to_the_hub_and_its_lack_is_told() {
    let hub = Hub::new(&small_model());
    *hub.state.token.lock().unwrap() = Some("hf_secret".into());
    let message = hub.config().fetch("org/name").unwrap_err().to_string();
    assert!(message.contains("config.json does not exist or asks for a token: set HF_TOKEN"), "{message}");
    let wrong = HubConfig { token: Some("hf_other".into()), ..hub.config() };
    let message = wrong.fetch("org/name").unwrap_err().to_string();
    assert!(message.contains("HF_TOKEN is not valid") && !message.contains("hf_other"), "{message}");
    hub.requests();
    let right = HubConfig { token: Some("hf_secret".into()), ..hub.config() };
    weights_are_whole(&right.fetch("org/name").unwrap());
    let to_hub = hub.requests().into_iter().filter(|(path, ..)| path.starts_with("/org"));
    assert!(to_hub.map(|(.., authorization)| authorization).all(|a| a == "Bearer hf_secret"));
}

#[test]
fn what_does_not_exist_or_cannot_be_reached_is_one_line() {
    let hub = Hub::new(&small_model());
    let nowhere = HubConfig { endpoint: "http://127.0.0.1:9".into(), ..hub.config() };
    for (config, id, expected) in [
        (hub.config(), "org/other", "org/other: there is no config.json on the hub"),
        (hub.config(), "org/name@dev", "org/name: there is no config.json on the hub"),
        (hub.config(), "org/name:y.gguf", "org/name: there is no y.gguf on the hub"),
        (hub.config(), "no id", "no id is no id such as org/name"),
        (nowhere, "org/name", "org/name: cannot reach http://127.0.0.1:9"),
    ] {
        let message = config.fetch(id).unwrap_err().to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{message}");
    }
    let message = hub.config().resolve("no/such/path").unwrap_err().to_string();
    assert!(message.contains("no/such/path: no such file or folder"), "{message}");
    let local = hub.cache.path().to_str().unwrap();
    assert_eq!(hub.config().resolve(local).unwrap(), hub.cache.path());
}
