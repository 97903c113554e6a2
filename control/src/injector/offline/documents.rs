//! A stream of documents, YAML or JSON, taken apart so that those which do not change
//! can be put back exactly as they were.
//!
//! YAML forbids `---` at the beginning of a line within a document, also in block
//! scalars (YAML 1.2.2, 9.1.2), so the stream can be cut there without being read.

use serde_json::{Deserializer, Value};
use serde_saphyr::UserMessageFormatter;

/// As much as the largest custom resource definitions have, times ten.
const MAX_NODES: usize = 2_000_000;
const MAX_DEPTH: usize = 256;

/// A part of a stream, with its separator if it begins with one.
#[derive(Debug)]
pub struct Document<'a> {
    pub text: &'a str,
    /// Of its beginning, from 1.
    line: usize,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    Yaml(Value),
    /// Objects one after the other, as `kubectl get -o json` in a loop writes them.
    Json(Vec<Value>),
}

/// What is wrong, and in which line of the stream.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct Malformed {
    line: u64,
    problem: String,
}

/// # Errors
/// When a document is neither YAML nor JSON.
pub fn read(text: &str) -> Result<Vec<Document<'_>>, Malformed> {
    let mut documents = Vec::new();
    for (line, text) in split(text) {
        documents.push(Document {
            text,
            line,
            content: parse(text, line)?,
        });
    }
    Ok(documents)
}

fn split(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut from, mut from_line) = (0, 1);
    let mut at = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let is_separator = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if is_separator && at > from {
            parts.push((from_line, &text[from..at]));
            (from, from_line) = (at, number);
        }
        at += line.len();
    }
    if at > from {
        parts.push((from_line, &text[from..]));
    }
    parts
}

fn parse(text: &str, first_line: usize) -> Result<Content, Malformed> {
    let body = text.strip_prefix("---").unwrap_or(text).trim_start();
    if body.starts_with('{') {
        let objects: Result<Vec<Value>, _> = Deserializer::from_str(body).into_iter().collect();
        // A flow mapping begins like JSON and may be YAML alone.
        if let Ok(objects) = objects {
            return Ok(Content::Json(objects));
        }
    }
    // As kubectl reads: yes is a boolean, and 0644 the mode of a file.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_depth: MAX_DEPTH,
        },
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
        .map(Content::Yaml)
        .map_err(|error| Malformed {
            line: error.location().map_or(1, |at| at.line()) + first_line as u64 - 1,
            problem: error.render_with_formatter(&UserMessageFormatter),
        })
}

// === impl Document ===

impl Document<'_> {
    /// As it is now.
    pub fn render(&self) -> Result<String, serde_saphyr::ser_error::Error> {
        Ok(match &self.content {
            Content::Json(objects) => objects
                .iter()
                .fold(String::new(), |text, object| format!("{text}{object:#}\n")),
            Content::Yaml(value) => {
                let options = serde_saphyr::ser_options! {
                    // Long lines stay long: folded ones are hard to compare.
                    folded_wrap_chars: usize::MAX,
                };
                let separator = if self.text.starts_with("---") {
                    "---\n"
                } else {
                    ""
                };
                let yaml = serde_saphyr::to_string_with_options(value, options)?;
                format!("{separator}{yaml}")
            }
        })
    }

    /// The line that it begins in, past separators and comments.
    pub fn line(&self) -> usize {
        let is_void = |line: &&str| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            line.is_empty() || line.starts_with('#')
        };
        self.line + self.text.lines().take_while(is_void).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_stream_is_the_sum_of_its_parts() {
        for text in [
            "",
            "a: 1",
            "---\na: 1\n---\nb: 2\n",
            "# head\n---\na: |\n  ---\n  b\n--- # tail\nb: 2\n---\n",
            "a: 1\r\n---\r\nb: 2\r\n",
            "---\n---\n---",
            "a: '--- x'\n---x: 1\n",
        ] {
            let parts: String = split(text).iter().map(|(_, part)| *part).collect();
            assert_eq!(parts, text);
        }
        let text = "# head\n---\na: |\n  ---\n  b\n--- # tail\nb: 2\n";
        let lines: Vec<_> = split(text).iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 2, 6]);
        let lines: Vec<_> = read(text).unwrap().iter().map(Document::line).collect();
        assert_eq!(lines, [2, 3, 7]);
    }

    #[test]
    fn words_mean_what_kubectl_takes_them_for() {
        // kubectl's answers, except for 1e3: it writes the same number as 1000.
        let yaml = "mode: 0644\nyes: on\nport: '80'\ntext: 1:30\nnone: ~\ndate: 2024-01-01\n\
                    short: y\nhex: 0x1F\nnew: 0o644\nlong: 1_000\nfloat: 1e3\nmerged: {<<: {a: =}}\n";
        let documents = read(yaml).unwrap();
        let Content::Yaml(value) = &documents[0].content else {
            panic!("{documents:?}");
        };
        assert_eq!(
            *value,
            json!({"mode": 420, "yes": true, "port": "80", "text": "1:30", "none": null,
                   "date": "2024-01-01", "short": true, "hex": 31, "new": 420, "long": 1000,
                   "float": 1000.0, "merged": {"a": "="}})
        );
    }

    #[test]
    fn json_stays_json() {
        let documents = read("{\"a\": 1}\n{\"b\": [2]}\n").unwrap();
        let [document] = documents.as_slice() else {
            panic!("{documents:?}");
        };
        assert_eq!(
            document.render().unwrap(),
            "{\n  \"a\": 1\n}\n{\n  \"b\": [\n    2\n  ]\n}\n"
        );
        let documents = read("{a: 1, b: yes}\n").unwrap();
        assert!(matches!(&documents[0].content, Content::Yaml(_)));
    }

    #[test]
    fn a_mistake_has_its_line_in_the_stream() {
        let error = read("a: 1\n---\nb: 2\nc: [1\nd: 3\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("line 4: ") || error.starts_with("line 5: "),
            "{error}"
        );
        let error = read("a: 1\n---\nb: 2\nb: 3\n").unwrap_err().to_string();
        assert!(error.starts_with("line 4: "), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            text in proptest::collection::vec("\\PC{0,40}|[ \t]{0,3}|0[0-7]{1,3}|y|No|~|-+", 0..6),
            number in any::<i64>(),
            fraction in -1e9..1e9f64,
        ) {
            let value = json!({
                "lines": text.join("\n"),
                "words": text,
                "number": number,
                "fraction": fraction,
                "nested": [{"a": {"b": text.first()}}, [], {}],
            });
            let document = Document { text: "---\n", line: 1, content: Content::Yaml(value.clone()) };
            let written = document.render().unwrap();
            let read = read(&written).unwrap();
            prop_assert_eq!(read.len(), 1, "{}", written);
            let Content::Yaml(again) = &read[0].content else {
                return Err(TestCaseError::fail(written));
            };
            prop_assert_eq!(again, &value, "{}", written);
        }
    }
}
