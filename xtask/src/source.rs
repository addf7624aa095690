//! Rust source with everything that is not code blanked out, so that a search for a word finds code only.

/// The source with comments, strings and character literals replaced by spaces. Lines keep their numbers.
pub(crate) fn code_only(source: &str) -> String {
    let mut rest = source;
    let mut code = String::with_capacity(source.len());
    while let Some(c) = rest.chars().next() {
        let after_word = code.chars().next_back().is_some_and(is_word);
        let blank = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(len) = (!after_word).then(|| raw_string(rest)).flatten() {
            len
        } else if c == '"' {
            quoted(rest, '"')
        } else if c == '\'' && is_char_literal(rest) {
            quoted(rest, '\'')
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        code.extend(rest[..blank].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[blank..];
    }
    code
}

/// `code` (of [`code_only`]) without the items under `#[cfg(test)]`.
pub(crate) fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find(MARK) {
        out.push_str(&rest[..start]);
        let item = &rest[start..];
        let body = &item[MARK.len()..];
        // An item ends with its semicolon, or with the brace that closes its first one.
        let end = match (body.find(';'), body.find('{')) {
            (Some(semicolon), Some(brace)) if semicolon < brace => semicolon + 1,
            (Some(semicolon), None) => semicolon + 1,
            (_, Some(brace)) => brace + closing_brace(&body[brace..]),
            (None, None) => body.len(),
        };
        let end = MARK.len() + end;
        out.extend(item[..end].chars().filter(|c| *c == '\n'));
        rest = &item[end..];
    }
    out.push_str(rest);
    out
}

/// The lines (from 1) on which `word` stands, not as the end or the start of a longer word.
pub(crate) fn lines_with(code: &str, word: &str) -> Vec<usize> {
    let starts_in_word = word.chars().next().is_some_and(is_word);
    let ends_in_word = word.chars().next_back().is_some_and(is_word);
    let is_whole = |line: &str, at: usize| {
        let before = line[..at].chars().next_back().is_some_and(is_word);
        let after = line[at + word.len()..].chars().next().is_some_and(is_word);
        !(starts_in_word && before || ends_in_word && after)
    };
    code.lines()
        .enumerate()
        .filter(|(_, line)| line.match_indices(word).any(|(at, _)| is_whole(line, at)))
        .map(|(i, _)| i + 1)
        .collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of a raw string that starts here, prefix included.
fn raw_string(rest: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"]
        .into_iter()
        .find(|p| rest.strip_prefix(p).is_some_and(|r| r.trim_start_matches('#').starts_with('"')))?;
    let hashes = rest[prefix.len()..].chars().take_while(|c| *c == '#').count();
    let body = prefix.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len()))
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Tells `'a'` from the lifetime `'a`.
fn is_char_literal(rest: &str) -> bool {
    let mut chars = rest.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

fn closing_brace(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left_and_lines_keep_their_numbers() {
        let source = "let a = \"todo \\\" x\"; // todo\n/* todo /* todo */ todo\n*/ let b = 'x'; fn f<'a>(x: &'a str) {}\n\
                      let c = r#\"todo \"# ; let d = br\"todo\"; let e = '\\''; let bar = 1;";
        let code = code_only(source);
        assert!(!code.contains("todo"), "{code}");
        assert_eq!(code.lines().count(), source.lines().count());
        for kept in
            ["let a = ", "let b = ", "fn f<'a>(x: &'a str) {}", "let c = ", "let e = ", "let bar = 1;"]
        {
            assert!(code.contains(kept), "{kept} is gone: {code}");
        }
    }

    #[test]
    fn tests_are_cut_out_and_what_follows_them_stays() {
        let code = "fn a() { x }\n#[cfg(test)]\nmod tests {\n fn b() { if y { y } }\n}\nfn c() { z }\n#[cfg(test)]\nuse q;\nfn d() {}";
        let cut = without_tests(code);
        assert!(!cut.contains('y') && !cut.contains('q'), "{cut}");
        assert_eq!(lines_with(&cut, "z"), [6]);
        assert_eq!(lines_with(&cut, "fn d"), [9]);
    }

    #[test]
    fn a_word_is_a_whole_word() {
        let code = "a_todo!()\ntodo!()\n todo!{}\nmytodo!\nenv::var(x)\nenv::variable\nenv::var_os";
        assert_eq!(lines_with(code, "todo!"), [2, 3]);
        assert_eq!(lines_with(code, "env::var"), [5]);
    }
}
