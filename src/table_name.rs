//! Names of tables and patterns over them, as people write them: unquoted folds to lower case, quotes are exact, no
//! schema means `public`, `*` and `?` are globs outside quotes.

use std::fmt;

/// A table's name as the catalog holds it. Its `Display` reads back to itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TableName {
    pub(crate) schema: String,
    pub(crate) name: String,
}

impl TableName {
    /// Reads one name; a glob is refused.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let pattern = TablePattern::parse(text)?;
        pattern.outright().ok_or_else(|| format!("`{text}` is a pattern where a table's name is wanted"))
    }

    /// `"schema"."name"`, quoted for SQL.
    pub(crate) fn to_sql(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// As one name: `{table}` in schema public, else `{schema}_{table}`.
    pub(crate) fn to_flat(&self) -> String {
        if self.schema == "public" { self.name.clone() } else { format!("{}_{}", self.schema, self.name) }
    }

    /// `schema.name` for object keys: each identifier percent-encoded outside `[A-Za-z0-9_-]`.
    pub(crate) fn to_key(&self) -> String {
        format!("{}.{}", percent_encoded(&self.schema), percent_encoded(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quoted_if_needed(&self.schema), quoted_if_needed(&self.name))
    }
}

/// An identifier quoted for SQL.
pub(crate) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// As people write it: quoted where it must be.
pub(crate) fn quoted_if_needed(identifier: &str) -> String {
    let is_plain = identifier.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && identifier.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain { identifier.to_owned() } else { quoted(identifier) }
}

fn percent_encoded(identifier: &str) -> String {
    let mut key = String::with_capacity(identifier.len());
    for byte in identifier.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            key.push(char::from(byte));
        } else {
            key.push_str(&format!("%{byte:02X}"));
        }
    }
    key
}

/// One entry of `TABLES` or of the configuration document: a name, or a glob over names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TablePattern {
    text: String,
    schema: Glob,
    name: Glob,
}

impl TablePattern {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = split_identifiers(text)?;
        let (schema, name) = match (parts.pop(), parts.pop(), parts.pop()) {
            (Some(name), None, _) => (Glob::literal("public"), name),
            (Some(name), Some(schema), None) => (schema, name),
            _ => return Err(format!("`{text}` has more than two parts; write schema.table")),
        };
        Ok(Self { text: text.trim().to_owned(), schema, name })
    }

    /// The table's name, where the pattern has no wildcard.
    pub(crate) fn outright(&self) -> Option<TableName> {
        Some(TableName { schema: self.schema.as_literal()?, name: self.name.as_literal()? })
    }

    pub(crate) fn matches(&self, table: &TableName) -> bool {
        self.schema.matches(&table.schema) && self.name.matches(&table.name)
    }

    /// Whether both mean the same, however they are written.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.schema, &self.name) == (&other.schema, &other.name)
    }

    /// Orders patterns from general to specific: names without a wildcard last, then by literal characters.
    pub(crate) fn specificity(&self) -> (bool, usize) {
        (self.outright().is_some(), self.schema.literal_count() + self.name.literal_count())
    }

    /// The two halves as SQL `like` patterns.
    pub(crate) fn to_like(&self) -> (String, String) {
        (self.schema.to_like(), self.name.to_like())
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Literal(char),
    AnyOne,
    AnyRun,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Glob(Vec<Token>);

impl Glob {
    fn literal(text: &str) -> Self {
        Self(text.chars().map(Token::Literal).collect())
    }

    fn as_literal(&self) -> Option<String> {
        self.0.iter().map(|token| if let Token::Literal(c) = token { Some(*c) } else { None }).collect()
    }

    fn literal_count(&self) -> usize {
        self.0.iter().filter(|token| matches!(token, Token::Literal(_))).count()
    }

    fn matches(&self, text: &str) -> bool {
        // reached[i]: the first i tokens can match what was read so far. Linear in text times pattern.
        let mut reached = vec![false; self.0.len() + 1];
        reached[0] = true;
        self.skip_runs(&mut reached);
        for c in text.chars() {
            let mut next = vec![false; self.0.len() + 1];
            for (i, token) in self.0.iter().enumerate().filter(|(i, _)| reached[*i]) {
                match token {
                    Token::Literal(literal) => next[i + 1] |= *literal == c,
                    Token::AnyOne => next[i + 1] = true,
                    Token::AnyRun => next[i] = true,
                }
            }
            self.skip_runs(&mut next);
            reached = next;
        }
        reached[self.0.len()]
    }

    fn skip_runs(&self, reached: &mut [bool]) {
        for (i, token) in self.0.iter().enumerate() {
            if reached[i] && *token == Token::AnyRun {
                reached[i + 1] = true;
            }
        }
    }

    fn to_like(&self) -> String {
        let mut like = String::new();
        for token in &self.0 {
            match token {
                Token::AnyRun => like.push('%'),
                Token::AnyOne => like.push('_'),
                Token::Literal(c) => {
                    if matches!(c, '%' | '_' | '\\') {
                        like.push('\\');
                    }
                    like.push(*c);
                }
            }
        }
        like
    }
}

fn split_identifiers(text: &str) -> Result<Vec<Glob>, String> {
    if text.contains('\0') {
        return Err("a table's name holds a NUL character".to_owned());
    }
    let mut parts = Vec::new();
    let mut chars = text.trim().chars().peekable();
    loop {
        let mut tokens = Vec::new();
        if chars.peek() == Some(&'"') {
            chars.next();
            loop {
                match chars.next() {
                    Some('"') if chars.peek() == Some(&'"') => {
                        chars.next();
                        tokens.push(Token::Literal('"'));
                    }
                    Some('"') => break,
                    Some(c) => tokens.push(Token::Literal(c)),
                    None => return Err(format!("`{text}` has an unclosed quote")),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| *c != '.') {
                tokens.push(match c {
                    '*' => Token::AnyRun,
                    '?' => Token::AnyOne,
                    c if c.is_alphanumeric() || c == '_' || c == '$' => Token::Literal(c.to_ascii_lowercase()),
                    c => {
                        return Err(format!(
                            "`{text}` has the character {c:?} outside quotes; write schema.table, with double quotes \
                             around unusual names"
                        ));
                    }
                });
            }
        }
        if tokens.is_empty() {
            return Err(format!("`{text}` has an empty part; write schema.table"));
        }
        parts.push(Glob(tokens));
        match chars.next() {
            None => return Ok(parts),
            Some('.') => {}
            Some(_) => return Err(format!("`{text}` has text after a closing quote")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> TableName {
        TableName::parse(text).expect("a name")
    }

    #[test]
    fn unquoted_names_fold_and_quoted_names_are_exact() {
        assert_eq!(name("SAMPLE_USERS").to_string(), "public.sample_users");
        assert_eq!(name("Sales.Orders").to_sql(), r#""sales"."orders""#);
        assert_eq!(name(r#"public."Weird ""x"".y""#).name, r#"Weird "x".y"#);
        assert_eq!(name(r#"public."*""#).name, "*");
    }

    #[test]
    fn a_name_reads_back_to_itself() {
        for text in ["public.a", r#""A b"."c.d""#, r#"public."1""#, r#"public."q""q""#] {
            assert_eq!(name(text).to_string(), text);
        }
    }

    #[test]
    fn object_keys_encode_all_but_letters_digits_underscore_and_hyphen() {
        assert_eq!(name(r#""A b"."c.d/../ü""#).to_key(), "A%20b.c%2Ed%2F%2E%2E%2F%C3%BC");
    }

    #[test]
    fn globs_match_like_a_shell_and_only_outside_quotes() {
        let pattern = TablePattern::parse("public.audit_*").expect("a pattern");
        assert!(pattern.matches(&name("audit_log")) && pattern.matches(&name("audit_")));
        assert!(!pattern.matches(&name("audit")) && !pattern.matches(&name("other.audit_log")));
        assert!(TablePattern::parse("*.t?").expect("a pattern").matches(&name("x.t1")));
        assert_eq!(pattern.to_like(), ("public".to_owned(), r"audit\_%".to_owned()));
        let all = TablePattern::parse("public.*").expect("a pattern");
        assert!(all.specificity() < pattern.specificity());
        assert!(pattern.specificity() < TablePattern::parse("a.b").expect("a pattern").specificity());
    }

    #[test]
    fn hostile_names_are_refused() {
        for text in
            ["", "a.", ".b", "a.b.c", "a;drop table b", "a b", "\"a", "\"a\"b", "../x", "a\0", "public.*"]
        {
            assert!(TableName::parse(text).is_err(), "{text:?}");
        }
    }
}
