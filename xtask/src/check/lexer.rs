//! Splits Rust source into words and marks, far enough to find paths: comments and literals are dropped.
//!
//! Not a parser: a full one would cost more build time than all of this crate, and paths are all that `floors` reads.

/// One word or mark, and the line it stands on (from 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    /// `use`, `crate`, `::`, `{`, …
    pub(super) text: &'a str,
    /// From 1.
    pub(super) line: usize,
}

/// All tokens of a file.
pub(super) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut lexer = Lexer { source, at: 0, line: 1 };
    let mut found = Vec::new();
    while let Some(token) = lexer.next_token() {
        found.push(token);
    }
    found
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Lexer<'a> {
    fn next_token(&mut self) -> Option<Token<'a>> {
        loop {
            let rest = &self.source[self.at..];
            let skipped = skip(rest);
            if skipped == 0 {
                let length = token_length(rest)?;
                let token = Token { text: &rest[..length], line: self.line };
                self.advance(length);
                return Some(token);
            }
            self.advance(skipped);
        }
    }

    fn advance(&mut self, length: usize) {
        self.line += self.source[self.at..self.at + length].matches('\n').count();
        self.at += length;
    }
}

/// How many bytes at the start of `rest` are space, comment or literal.
fn skip(rest: &str) -> usize {
    let space = rest.len() - rest.trim_start().len();
    if space > 0 {
        return space;
    }
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    string(rest).or_else(|| raw_string(rest)).or_else(|| character(rest)).unwrap_or(0)
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        let (step, change) = match rest.as_bytes().get(at..at + 2) {
            Some(b"/*") => (2, 1),
            Some(b"*/") => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth = depth.saturating_add_signed(change);
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string(rest: &str) -> Option<usize> {
    let opening = if rest.starts_with('"') { 1 } else { 2 };
    if opening == 2 && !(rest.starts_with("b\"") || rest.starts_with("c\"")) {
        return None;
    }
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(opening) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

fn raw_string(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let opened = body[hashes..].strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(hashes));
    let prefix = rest.len() - opened.len();
    Some(opened.find(&closing).map_or(rest.len(), |end| prefix + end + closing.len()))
}

/// `'x'` and `'\n'`, but not the lifetime `'a`.
fn character(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    if body.starts_with('\\') {
        return body[2..].find('\'').map(|end| 1 + 2 + end + 1);
    }
    let first = body.chars().next()?.len_utf8();
    body[first..].starts_with('\'').then_some(1 + first + 1)
}

fn token_length(rest: &str) -> Option<usize> {
    let first = rest.chars().next()?;
    if rest.starts_with("::") {
        return Some(2);
    }
    let word = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
    Some(if is_word(first) { word } else { first.len_utf8() })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<&str> {
        tokens(source).into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn comments_and_literals_hold_no_paths() {
        let source = r##"// crate::a
            /* crate::b /* nested */ */ let s = "crate::c \" crate::d"; let r = r#"crate::e"#; 'x' '\'' b"crate::f""##;
        assert_eq!(words(source), ["let", "s", "=", ";", "let", "r", "=", ";"]);
    }

    #[test]
    fn a_lifetime_does_not_open_a_character() {
        assert_eq!(words("&'a crate::x"), ["&", "'", "a", "crate", "::", "x"]);
    }

    #[test]
    fn tokens_know_their_line() {
        let lines: Vec<usize> = tokens("a\n\"two\nlines\" b").iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 3]);
    }

    #[test]
    fn what_is_never_closed_ends_with_the_file() {
        assert!(words("/* crate::a").is_empty());
        assert!(words("\"crate::a").is_empty());
        assert!(words("r#\"crate::a").is_empty());
    }
}
