//! What README says is shown by a test is shown by one.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

#[test]
fn every_test_that_readme_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let table = readme.split("| shown by |").nth(1).unwrap();
    let table = table.split("\n\n").next().unwrap();
    let named: Vec<_> = table
        .split('`')
        .filter_map(|text| text.split_once("::"))
        .collect();
    assert!(named.len() > 40, "{named:?}");
    let rows = table.lines().filter(|line| line.starts_with("| ")).count();
    let shown = table.lines().filter(|line| line.contains("::")).count();
    assert_eq!(rows, shown, "a row names no test");
    for (file, test) in named {
        let source = ["bench/tests", "core/src"]
            .map(|dir| root.join(dir).join(format!("{file}.rs")))
            .into_iter()
            .find(|path| path.is_file());
        let source = source.unwrap_or_else(|| panic!("there is no {file}.rs"));
        let text = fs::read_to_string(source).unwrap();
        assert!(
            text.contains(&format!("fn {test}(")),
            "{file}.rs has no {test}"
        );
    }
}
