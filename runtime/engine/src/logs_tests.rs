use std::{fs, io::Write};

use futures_util::StreamExt;

use super::*;

fn line(text: &str, second: u32) -> String {
    format!(
        "{{\"log\":\"{text}\\n\",\"stream\":\"stdout\",\"time\":\"2026-01-01T00:00:{second:02}.5Z\"}}\n"
    )
}

fn options() -> LogOptions {
    LogOptions { stdout: true, stderr: true, ..LogOptions::default() }
}

fn stream(reader: Reader) -> impl futures_util::Stream<Item = String> {
    let lines = futures_util::stream::unfold(reader, |mut reader| async move {
        reader.next().await.map(|line| (line, reader))
    });
    lines.map(|line| String::from_utf8(line.unwrap().bytes.to_vec()).unwrap().trim().to_owned())
}

async fn all(path: &Path, options: LogOptions) -> Vec<String> {
    stream(Reader::open(path.to_owned(), options, None).await.unwrap()).collect().await
}

fn three_files(dir: &Path) -> PathBuf {
    let path = dir.join("json.log");
    fs::write(rotated(&path, 2), line("a", 1) + &line("b", 2)).unwrap();
    fs::write(rotated(&path, 1), line("c", 3) + "torn {\n" + &line("d", 4)).unwrap();
    fs::write(&path, line("e", 5)).unwrap();
    path
}

#[tokio::test]
async fn rotated_files_are_read_from_the_oldest_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = three_files(dir.path());
    assert_eq!(all(&path, options()).await, ["a", "b", "c", "d", "e"]);
    assert!(all(&dir.path().join("missing"), options()).await.is_empty());
}

#[tokio::test]
async fn tail_since_and_until_choose() {
    let dir = tempfile::tempdir().unwrap();
    let path = three_files(dir.path());
    let tail = |lines| LogOptions { tail: Some(lines), ..options() };
    assert!(all(&path, tail(0)).await.is_empty());
    assert_eq!(all(&path, tail(1)).await, ["e"]);
    assert_eq!(all(&path, tail(2)).await, ["d", "e"]);
    // The torn line counts as one: it is one in the file.
    assert_eq!(all(&path, tail(5)).await, ["b", "c", "d", "e"]);
    assert_eq!(all(&path, tail(99)).await.len(), 5);
    let at = |text: &str| Some(text.parse().unwrap());
    let since = LogOptions { since: at("2026-01-01T00:00:04Z"), ..options() };
    assert_eq!(all(&path, since).await, ["d", "e"]);
    let until = LogOptions { until: at("2026-01-01T00:00:03Z"), ..options() };
    assert_eq!(all(&path, until).await, ["a", "b"]);
    let neither = LogOptions { stderr: true, ..LogOptions::default() };
    assert!(all(&path, neither).await.is_empty());
}

#[tokio::test]
async fn following_survives_rotation_and_ends_with_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("json.log");
    let mut file = File::create(&path).unwrap();
    file.write_all(line("one", 1).as_bytes()).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let end: End = Box::pin(async move {
        let _ = stopped.await;
    });
    let reader = Reader::open(path.clone(), options(), Some(end)).await.unwrap();
    let mut lines = Box::pin(stream(reader));
    assert_eq!(lines.next().await.unwrap(), "one");
    let waiting = tokio::spawn(async move {
        let next = lines.next().await;
        (next, lines)
    });
    tokio::task::yield_now().await;
    file.write_all(line("two", 2).as_bytes()).unwrap();
    let (next, mut lines) = waiting.await.unwrap();
    assert_eq!(next.unwrap(), "two");
    file.write_all(line("three", 3).as_bytes()).unwrap();
    fs::rename(&path, rotated(&path, 1)).unwrap();
    fs::write(&path, line("four", 4)).unwrap();
    fs::rename(rotated(&path, 1), rotated(&path, 2)).unwrap();
    fs::rename(&path, rotated(&path, 1)).unwrap();
    fs::write(&path, line("five", 5)).unwrap();
    for word in ["three", "four", "five"] {
        assert_eq!(lines.next().await.unwrap(), word);
    }
    stop.send(()).unwrap();
    assert_eq!(lines.next().await, None);
}

#[tokio::test]
async fn what_was_written_before_the_end_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("json.log");
    fs::write(&path, line("last words", 1)).unwrap();
    let reader = Reader::open(path, options(), Some(Box::pin(async {}))).await.unwrap();
    assert_eq!(stream(reader).collect::<Vec<_>>().await, ["last words"]);
}
