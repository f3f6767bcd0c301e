//! Templates of `--format`: text with fields of a JSON document, as docker writes them.
//!
//! `{{.Config.Env}}` is replaced by a field, `{{json .Config.Env}}` by the field as JSON. There are no conditions, loops and functions:
//! for those, print JSON and use jq.

use serde_json::Value;

use super::error;
use crate::error::ErrorCode;

/// Replaces the fields in a template. Strings are printed as they are, lists and objects as JSON.
pub(super) fn fill(template: &str, documents: &[Value]) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        text.push_str(before);
        let Some((action, after)) = after.split_once("}}") else {
            return Err(usage(format!("template `{template}` has `{{{{` without `}}}}`")));
        };
        text.push_str(&field(action.trim(), documents)?);
        rest = after;
    }
    Ok(text + rest)
}

fn field(action: &str, documents: &[Value]) -> anyhow::Result<String> {
    let (as_json, path) = match action.strip_prefix("json ") {
        Some(path) => (true, path.trim()),
        None => (false, action),
    };
    let Some(names) = path.strip_prefix('.') else {
        let message = format!("`{{{{{action}}}}}` is no field");
        return Err(error::fail_with_hint(
            ErrorCode::Usage,
            message,
            "write {{.Field}} or {{json .Field}}; for more, use --json with jq",
        ));
    };
    let found = documents.iter().find_map(|document| look_up(document, names));
    let Some(value) = found else {
        let known: Vec<&str> = documents
            .iter()
            .flat_map(|document| document.as_object().into_iter().flat_map(|fields| fields.keys()))
            .map(String::as_str)
            .collect();
        let hint = format!("the fields at the top are: {}", known.join(", "));
        return Err(error::fail_with_hint(ErrorCode::Usage, format!("there is no field `{path}`"), hint));
    };
    Ok(match value {
        Value::String(text) if !as_json => text.clone(),
        Value::Null if !as_json => String::new(),
        value => value.to_string(),
    })
}

/// Finds a field by the names that lead to it, separated by dots. A number selects an item of a list.
fn look_up<'a>(document: &'a Value, names: &str) -> Option<&'a Value> {
    names.split('.').filter(|name| !name.is_empty()).try_fold(document, |value, name| match value {
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        value => value.get(name),
    })
}

fn usage(message: String) -> anyhow::Error {
    error::fail(ErrorCode::Usage, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_replaced_and_everything_else_is_kept() {
        let documents = [
            json!({"Config": {"Env": ["A=1", "B=2"], "User": "7"}, "Size": 12, "None": null}),
            json!({"name": "lab/a", "Config": {"other": 1}}),
        ];
        for (template, expected) in [
            ("{{.Config.User}}", "7"),
            ("{{ .Config.Env }}", r#"["A=1","B=2"]"#),
            ("{{.Config.Env.1}} {{.Size}}b", "B=2 12b"),
            ("{{json .Config.User}}", "\"7\""),
            ("{{.name}}:{{.None}}.", "lab/a:."),
            ("{{.Config.other}}", "1"),
            ("no field", "no field"),
        ] {
            assert_eq!(fill(template, &documents).unwrap(), expected, "{template}");
        }
        for (template, expected) in [
            ("{{.Nothing}}", "there is no field `.Nothing`"),
            ("{{.Config.Env.7}}", "there is no field `.Config.Env.7`"),
            ("{{range .Config.Env}}", "`{{range .Config.Env}}` is no field"),
            ("{{.Size", "template `{{.Size` has `{{` without `}}`"),
        ] {
            assert_eq!(fill(template, &documents).unwrap_err().to_string(), expected, "{template}");
        }
    }
}
