//! The file format: what is written can be read, and the schema says so.

use super::*;

#[test]
fn a_run_survives_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let results = synthetic::run(Profile::Smoke, 3);
    write(&results, &dir.path().join("results.json")).unwrap();
    assert_eq!(read(dir.path()).unwrap(), results);
}

#[test]
fn a_packed_file_is_the_same_run() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let results = synthetic::run(Profile::Smoke, 3);
    let plain = dir.path().join("results.json");
    write(&results, &plain).unwrap();
    let packed = dir.path().join("results.json.gz");
    let file = std::fs::File::create(&packed).unwrap();
    let mut packer = flate2::write::GzEncoder::new(file, flate2::Compression::best());
    packer.write_all(&std::fs::read(&plain).unwrap()).unwrap();
    packer.finish().unwrap();
    assert_eq!(read(&packed).unwrap(), results);
    std::fs::remove_file(plain).unwrap();
    assert_eq!(read(dir.path()).unwrap(), results);
}

#[test]
fn made_up_results_satisfy_the_schema_and_nonsense_does_not() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let mut json = serde_json::to_value(synthetic::run(Profile::Quick, 3)).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&json)
        .map(|e| e.to_string())
        .collect();
    assert_eq!(errors, Vec::<String>::new());
    json["machine"]["cores"] = "two".into();
    assert!(!validator.is_valid(&json));
}

#[test]
fn the_schema_that_is_checked_in_is_that_of_the_types() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/results.schema.json");
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        stored == schema_text(),
        "bench/schema/results.schema.json is out of date: write it anew with \
         `duet-bench schema > bench/schema/results.schema.json`"
    );
}

#[test]
fn unusable_files_are_named_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let message = |text: &str| {
        let path = dir.path().join("results.json");
        std::fs::write(&path, text).unwrap();
        read(dir.path()).unwrap_err().to_string()
    };
    assert!(message("{\"schema\": \"duet.bench/v9\"}").contains("duet.bench/v9"));
    for text in ["", "{", "[]", "{\"schema\": \"duet.bench/v1\"}"] {
        let message = message(text);
        assert!(
            message.contains("results.json: not a results file"),
            "{message}"
        );
        assert!(!message.contains('\n'));
    }
    // Of a later version of the same schema: named, with the version that reads it.
    let mut later = serde_json::to_value(synthetic::run(Profile::Smoke, 3)).unwrap();
    later["version"] = "9.9.9".into();
    later["invented"] = true.into();
    let later = message(&later.to_string());
    assert!(
        later.contains("unknown field `invented`") && later.contains("duet-bench 9.9.9"),
        "{later}"
    );
    let absent = read(&dir.path().join("nowhere")).unwrap_err().to_string();
    assert!(absent.contains("nowhere"));
    let empty = tempfile::tempdir().unwrap();
    assert!(
        read(empty.path())
            .unwrap_err()
            .to_string()
            .contains("no results.json")
    );
}

/// What a file lacks that was added since has a default, so an earlier one is read.
#[test]
fn a_file_of_an_earlier_version_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let results = synthetic::run(Profile::Smoke, 3);
    let mut earlier = serde_json::to_value(&results).unwrap();
    let fields = earlier.as_object_mut().unwrap();
    for field in ["analysis", "status", "foreign", "notes"] {
        fields.remove(field);
    }
    std::fs::write(dir.path().join("results.json"), earlier.to_string()).unwrap();
    let mut read = read(dir.path()).unwrap();
    assert!(read.analysis.verdicts.is_empty());
    crate::analysis::analyse(&mut read);
    assert_eq!(read.analysis, results.analysis);
}

#[test]
fn points_come_by_series_and_then_by_size() {
    let results = synthetic::unanalysed(Profile::Smoke, 3);
    let titles: Vec<String> = results.scenarios[0]
        .points()
        .iter()
        .map(Point::title)
        .collect();
    assert_eq!(titles[0], "HTTP/1.1 · same node, 10 % of capacity");
    assert_eq!(titles[3], "HTTP/1.1 · cross node, 50 % of capacity");
}

#[test]
fn quantile_metrics_are_named_by_their_quantile() {
    let key = |q| Metric::quantile(Stage::Response, q).key;
    assert_eq!(
        [key(0.5), key(0.9), key(0.99), key(0.999)],
        ["p50", "p90", "p99", "p999"]
    );
    assert_eq!(
        Metric::quantile(Stage::FirstByte, 0.5).key,
        "first_byte_p50"
    );
}
