//! More of the conformance body: the words in which a server refuses what is malformed.
use super::conformance::check;
use super::target::*;
use serde_json::json;

/// Older servers refuse the same, some of it in other words (seen: 1.20 and 1.36).
const SAME_WORDS_SINCE: u32 = 36;

const WORD: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
                    character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

pub async fn refuses_bad_labels_and_annotations(t: &Target) {
    assert_eq!(t.post("endpoints", &json!({"metadata": {"name": "words"}})).await.0, 201);
    let long = "x".repeat(64);
    let cases = [
        (json!({"labels": {"a b": "x"}}), format!("metadata.labels: Invalid value: \"a b\": name part {WORD}")),
        (
            json!({"labels": {"/c": "x"}}),
            "metadata.labels: Invalid value: \"/c\": prefix part must be non-empty".to_owned(),
        ),
        (
            json!({"labels": {"a/b/c": "x"}}),
            format!(
                "metadata.labels: Invalid value: \"a/b/c\": a valid label key {WORD} with an optional DNS subdomain \
                 prefix and '/' (e.g. 'example.com/MyName')"
            ),
        ),
        (
            json!({"labels": {"a/": "x"}}),
            format!(
                "[metadata.labels: Invalid value: \"a/\": name part must be non-empty, metadata.labels: Invalid value: \
                 \"a/\": name part {WORD}]"
            ),
        ),
        (
            json!({"labels": {&long: "x"}}),
            format!("metadata.labels: Invalid value: \"{long}\": name part must be no more than 63 bytes"),
        ),
        (
            json!({"labels": {"ok": &long}}),
            format!("metadata.labels: Invalid value: \"{long}\": must be no more than 63 bytes"),
        ),
        (
            json!({"annotations": {"A B": "x"}}),
            format!("metadata.annotations: Invalid value: \"A B\": name part {WORD}"),
        ),
        (
            json!({"annotations": {"a": "x".repeat(256 * 1024)}}),
            "metadata.annotations: Too long: may not be more than 262144 bytes".to_owned(),
        ),
    ];
    let minor = t.minor().await;
    for (metadata, words) in cases {
        let answer = t.patch("endpoints/words", MERGE, &json!({"metadata": metadata})).await;
        assert_eq!((answer.0, &answer.1["reason"]), (422, &json!("Invalid")), "{words}");
        if minor >= SAME_WORDS_SINCE {
            check(&answer, 422, "Invalid", &format!("Endpoints \"words\" is invalid: {words}"));
        }
    }
    let fine = json!({"labels": {"example.com/A_b.c": "", "x": "y"}, "annotations": {"Example.com/A": "any thing/!"}});
    assert_eq!(t.patch("endpoints/words", MERGE, &json!({"metadata": fine})).await.0, 200);
}

pub async fn refuses_contradictions_in_lists(t: &Target) {
    let options = "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: ";
    let cases = [
        (
            "resourceVersionMatch=NotOlderThan",
            format!("{options}resourceVersionMatch is forbidden unless resourceVersion is provided"),
        ),
        (
            "resourceVersionMatch=Exact&resourceVersion=0",
            format!("{options}resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""),
        ),
    ];
    for (query, words) in cases {
        check(&t.get(&format!("endpoints?{query}")).await, 422, "Invalid", &words);
    }
    let words = "strconv.ParseInt: parsing \"abc\": invalid syntax";
    check(&t.get("endpoints?limit=abc").await, 400, "BadRequest", words);
    let words = "invalid resource version: resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": \
                 invalid syntax";
    if t.minor().await >= SAME_WORDS_SINCE {
        check(&t.get("endpoints?resourceVersion=abc").await, 400, "BadRequest", words);
    }
}
