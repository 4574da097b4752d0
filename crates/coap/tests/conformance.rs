//! The table of conformance names tests that exist.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Names of the functions marked `#[test]` in the Rust files below `dir`.
fn tests_below(dir: &Path, names: &mut HashSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(path).unwrap();
            for test in text.split("#[test]").skip(1) {
                let name = test.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')).unwrap().0;
                names.insert(name.to_owned());
            }
        }
    }
}

#[test]
fn every_test_that_the_table_names_exists_and_every_row_names_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = HashSet::new();
    tests_below(&root.join("src"), &mut tests);
    tests_below(&root.join("tests"), &mut tests);
    for elsewhere in ["../gateway/src", "../net/src", "../../tests/tests"] {
        tests_below(&root.join(elsewhere), &mut tests);
    }
    let table = fs::read_to_string(root.join("CONFORMANCE.md")).unwrap();
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| §")).collect();
    assert!(rows.len() > 50);
    for row in rows {
        let cell = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        let named: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {row}");
        for name in named {
            assert!(tests.contains(name), "there is no test {name}");
        }
    }
}
