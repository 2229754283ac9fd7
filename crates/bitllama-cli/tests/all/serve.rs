//! `bitllama serve` as clients see it, over plain HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// A server of `models/nano` that ends with the test.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
        let mut process = Command::new(env!("CARGO_BIN_EXE_bitllama"))
            .args(["serve", "--port", "0", "-t", "1", "--artifact", nano.to_str().unwrap()])
            .args(flags)
            .env_remove("BITLLAMA_API_KEY")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit_once("http://").unwrap_or_else(|| panic!("{line}")).1.to_owned();
        Self { process, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Status, head and body of an answer.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String, String) {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses a body may close before it has all of it.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), unchunked(head, body))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, _, body) = self.ask("POST", path, "", body.to_string().as_bytes());
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A body without the lengths of its chunks.
fn unchunked(head: &str, body: &str) -> String {
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return body.to_owned();
    }
    let (mut out, mut rest) = (String::new(), body);
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            break;
        }
        out.push_str(&after[..length]);
        rest = &after[length + 2..];
    }
    out
}

#[test]
fn completions_come_whole_and_in_pieces_with_the_same_text() {
    let server = Server::start(&[]);
    let mut body = json!({ "prompt": "It is a truth", "max_tokens": 12, "temperature": 0 });
    let (status, whole) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{whole}");
    let text = whole["choices"][0]["text"].as_str().unwrap();
    assert!(!text.is_empty() && whole["choices"][0]["finish_reason"] == "length" && whole["model"] == "nano");
    assert_eq!(whole["usage"]["completion_tokens"], 12);
    body["stream"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    let (status, head, stream) = server.ask("POST", "/v1/completions", "", body.to_string().as_bytes());
    assert!(status == 200 && head.contains("text/event-stream"), "{head}");
    let pieces: Vec<&str> = stream.split("\n\n").filter_map(|piece| piece.strip_prefix("data: ")).collect();
    assert_eq!(pieces.last(), Some(&"[DONE]"));
    let pieces: Vec<Value> =
        pieces[..pieces.len() - 1].iter().map(|piece| serde_json::from_str(piece).unwrap()).collect();
    let streamed: String = pieces.iter().filter_map(|piece| piece["choices"][0]["text"].as_str()).collect();
    assert_eq!(streamed, text);
    assert_eq!(pieces.last().unwrap()["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    // The runtime alone continues the same way.
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let run = Command::new(env!("CARGO_BIN_EXE_bitllama"))
        .args(["run", "--artifact", nano.to_str().unwrap(), "--prompt", "It is a truth", "-n", "12"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&run.stdout), format!("{text}\n"));
}

#[test]
fn wrong_requests_are_answered_in_openai_s_shape_and_the_server_goes_on() {
    let server = Server::start(&["--body", "1"]);
    let too_large = vec![b' '; 2 << 20];
    for (method, path, body, expected) in [
        ("POST", "/v1/completions", &b"{"[..], 400),
        ("POST", "/v1/completions", b"\xff", 400),
        ("POST", "/v1/completions", b"{\"prompt\": \"a\", \"temprature\": 1}", 400),
        ("POST", "/v1/completions", b"{\"prompt\": [99999999]}", 400),
        ("POST", "/v1/completions", b"{\"prompt\": \"a\", \"model\": \"other\"}", 404),
        ("POST", "/v1/completions", b"{\"prompt\": \"a\", \"n\": 1000}", 400),
        ("POST", "/v1/completions", &too_large, 413),
        ("POST", "/v1/chat/completions", b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", 400),
        ("GET", "/v1/completions", b"", 405),
        ("GET", "/v2", b"", 404),
    ] {
        let (status, _, answer) = server.ask(method, path, "", body);
        assert_eq!(status, expected, "{path} {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
        assert!(answer["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer}");
        assert!(!answer.to_string().contains(env!("CARGO_MANIFEST_DIR")), "{answer}");
    }
    // Half a request, and one that breaks off, harm nobody.
    let half = server.connect();
    (&half).write_all(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{\"prompt").unwrap();
    drop(server.connect());
    let (status, answer) = server.post("/v1/completions", &json!({ "prompt": "a", "max_tokens": 1 }));
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn a_key_is_asked_for_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "secret\n").unwrap();
    let server = Server::start(&["--api-key-file", file.to_str().unwrap()]);
    for (header, expected) in [
        ("", 401),
        ("Authorization: Bearer secre\r\n", 401),
        ("Authorization: Bearer secrets\r\n", 401),
        ("Authorization: Basic secret\r\n", 401),
        ("Authorization: Bearer secret\r\n", 200),
    ] {
        assert_eq!(server.ask("GET", "/v1/models", header, b"").0, expected, "{header}");
    }
    assert_eq!(server.ask("GET", "/health", "", b"").0, 200);
    let (status, head, page) = server.ask("GET", "/", "", b"");
    assert!(status == 200 && head.contains("content-security-policy") && page.contains("<html"), "{head}");
}

#[test]
fn tokens_and_metrics_are_told() {
    let server = Server::start(&[]);
    let (_, tokens) = server.post("/tokenize", &json!({ "content": "It is a truth" }));
    let (_, text) = server.post("/detokenize", &json!({ "tokens": tokens["tokens"] }));
    assert_eq!(text["content"], "It is a truth");
    server.post("/v1/completions", &json!({ "prompt": "It is a truth", "max_tokens": 3 }));
    let (status, _, metrics) = server.ask("GET", "/metrics", "", b"");
    assert_eq!(status, 200);
    assert!(metrics.contains("bitllama_generated_tokens_total{model=\"nano\"} 3\n"), "{metrics}");
    assert!(metrics.contains("# TYPE bitllama_time_to_first_token_seconds summary\n"), "{metrics}");
}

#[cfg(unix)]
#[test]
fn a_stop_lets_answers_in_progress_end() {
    let mut server = Server::start(&[]);
    let mut stream = server.connect();
    let body = json!({ "prompt": "It is a truth", "max_tokens": 400, "temperature": 0, "stream": true }).to_string();
    write!(stream, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut first = [0; 512];
    assert!(stream.read(&mut first).unwrap() > 0);
    Command::new("kill").args(["-TERM", &server.process.id().to_string()]).status().unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "the answer was cut");
    assert!(server.process.wait().unwrap().success());
}

#[test]
fn a_port_in_use_or_two_models_of_a_name_are_refused_at_once() {
    let server = Server::start(&[]);
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let port = server.address.rsplit_once(':').unwrap().1;
    let error = |flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_bitllama"))
            .args(["serve", "--artifact", nano.to_str().unwrap()])
            .args(flags)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(error(&["--port", port]).contains(&format!("127.0.0.1:{port}: ")));
    assert!(error(&["--port", "0", "--artifact", nano.to_str().unwrap()]).contains("two models are called nano"));
}
