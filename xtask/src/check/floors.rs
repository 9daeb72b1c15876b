//! Holds the node engine to its floor table: a module uses lower floors only, and foreign crates stop at their door.
//!
//! The table is the one in the documentation of `userspace/agent/src/lib.rs`, so there is nothing to keep in step. Every
//! path that begins with `crate::` or leaves its module by `super::` counts, in `use` lines and inside functions, in
//! tests too. Macros are read as written: a path that a macro puts together is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::Verdict;
use super::lexer::{Token, tokens};
use super::sources;
use crate::workspace;

/// Reads the table and every file of the node engine.
pub(super) fn check() -> Verdict {
    let folder = workspace::root().join("userspace/agent/src");
    let table = match fs::read_to_string(folder.join("lib.rs")).map(|text| Table::parse(&text)) {
        Ok(Ok(table)) => table,
        Ok(Err(reason)) => return Verdict::Failed(vec![format!("userspace/agent/src/lib.rs: {reason}")]),
        Err(error) => return Verdict::Failed(vec![format!("userspace/agent/src/lib.rs: {error}")]),
    };
    let mut files = Vec::new();
    sources::collect(&folder, &mut files);
    files.sort();
    let broken: Vec<String> = files.iter().flat_map(|file| read_and_check(&table, &folder, file)).collect();
    match broken.is_empty() {
        true => Verdict::Ok(format!("{} modules on {} floors", table.floor_of.len(), table.floors())),
        false => Verdict::Failed(broken),
    }
}

/// The table: which module is on which floor, and which edges inside a floor are allowed.
#[derive(Debug, Default)]
struct Table {
    floor_of: BTreeMap<String, usize>,
    edges: BTreeSet<(String, String)>,
}

impl Table {
    /// Reads the rows `| 2 | [`a`], [`b`] (`b -> a`) |` and compares them with the `pub mod` lines.
    fn parse(lib: &str) -> Result<Self, String> {
        let mut table = Self::default();
        for line in lib.lines() {
            table.row(line);
        }
        let declared: BTreeSet<&str> = lib.lines().filter_map(declared_module).collect();
        let listed: BTreeSet<&str> = table.floor_of.keys().map(String::as_str).collect();
        match declared.symmetric_difference(&listed).next() {
            Some(module) => {
                Err(format!("module `{module}` is either not in the floor table or not declared"))
            }
            None => Ok(table),
        }
    }

    fn row(&mut self, line: &str) {
        let mut cells = line.trim_start_matches("//!").split('|').map(str::trim).skip(1);
        let (Some(floor), Some(modules)) = (cells.next().and_then(|cell| cell.parse().ok()), cells.next())
        else {
            return;
        };
        for quoted in modules.split('`').skip(1).step_by(2) {
            match quoted.split_once("->") {
                Some((from, to)) => {
                    self.edges.insert((from.trim().to_owned(), to.trim().to_owned()));
                }
                None => {
                    self.floor_of.insert(quoted.to_owned(), floor);
                }
            }
        }
    }

    fn floors(&self) -> usize {
        self.floor_of.values().collect::<BTreeSet<_>>().len()
    }

    fn allows(&self, from: &str, to: &str) -> bool {
        let lower = self.floor_of.get(to) < self.floor_of.get(from);
        from == to || lower || self.edges.contains(&(from.to_owned(), to.to_owned()))
    }

    fn floor(&self, module: &str) -> usize {
        self.floor_of.get(module).copied().unwrap_or(usize::MAX)
    }
}

/// One file, and where it stands.
struct Module<'a> {
    /// `userspace/agent/src/net/dial.rs`.
    shown: String,
    /// `net`.
    top: &'a str,
    /// How many `super::` lead from the file's own module to the crate: 1 for `net.rs`, 2 for `net/dial.rs`.
    depth: usize,
    /// Its siblings and children by name, which `super::x` may mean instead of the floor `x`.
    own: BTreeSet<String>,
}

fn read_and_check(table: &Table, folder: &Path, file: &Path) -> Vec<String> {
    let relative = file.strip_prefix(folder).unwrap_or(file).to_owned();
    let Some(module) = Module::of(folder, &relative) else { return Vec::new() };
    match fs::read_to_string(file) {
        Ok(text) => broken_in(table, &module, &text),
        Err(error) => vec![format!("{}: {error}", file.display())],
    }
}

impl<'a> Module<'a> {
    /// `None` for `lib.rs` and `main.rs`, which stand above all floors.
    fn of(folder: &Path, relative: &'a Path) -> Option<Self> {
        let first = Path::new(relative.components().next()?.as_os_str());
        let top = first.file_stem()?.to_str()?;
        if ["lib", "main"].contains(&top) {
            return None;
        }
        let mut files: Vec<PathBuf> = Vec::new();
        sources::collect(&folder.join(top), &mut files);
        let own = files.iter().filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned())).collect();
        let shown = format!("userspace/agent/src/{}", relative.display());
        Some(Self { shown, top, depth: relative.components().count(), own })
    }
}

fn broken_in(table: &Table, module: &Module<'_>, text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let mut broken = BTreeSet::new();
    for (at, token) in tokens.iter().enumerate() {
        for target in targets(table, module, &tokens, at) {
            if !table.allows(module.top, target) {
                broken.insert((token.line, imports_upwards(table, module, target)));
            }
        }
        if let Some(reason) = foreign(table, module, &tokens, at) {
            broken.insert((token.line, reason));
        }
    }
    broken.into_iter().map(|(line, reason)| format!("{}:{line}: {reason}", module.shown)).collect()
}

fn imports_upwards(table: &Table, module: &Module<'_>, target: &str) -> String {
    let (from, to) = (table.floor(module.top), table.floor(target));
    let advice = if from == to {
        "modules of a floor do not know each other: let the floor above pass what is needed"
    } else {
        "a module uses lower floors only: move the type down, or let the floor above pass it"
    };
    format!("{} (floor {from}) uses {target} (floor {to}); {advice}", module.top)
}

/// The floors' modules that the path beginning at `at` leads to; several where it opens a group.
fn targets<'a>(table: &Table, module: &Module<'_>, tokens: &[Token<'a>], at: usize) -> Vec<&'a str> {
    let path_starts = at == 0 || tokens[at - 1].text != "::";
    let next = match tokens[at].text {
        "crate" => at + 1,
        "super" if path_starts => match past_supers(tokens, at) {
            (count, next) if count >= module.depth => next,
            _ => return Vec::new(),
        },
        _ => return Vec::new(),
    };
    if tokens.get(next).map(|token| token.text) != Some("::") {
        return Vec::new();
    }
    let is_floor = |name: &&str| table.floor_of.contains_key(*name);
    let by_super = tokens[at].text == "super";
    let outside = |name: &&str| !(by_super && module.own.contains(*name));
    heads(tokens, next + 1).into_iter().filter(is_floor).filter(outside).collect()
}

/// How many `super` stand in a row, and what comes after the last one.
fn past_supers(tokens: &[Token<'_>], at: usize) -> (usize, usize) {
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.text == text);
    let (mut count, mut next) = (1, at + 1);
    while is(next, "::") && is(next + 1, "super") {
        count += 1;
        next += 2;
    }
    (count, next)
}

/// The first word of a path, or of each path of a group.
fn heads<'a>(tokens: &[Token<'a>], at: usize) -> Vec<&'a str> {
    let Some(first) = tokens.get(at) else { return Vec::new() };
    if first.text != "{" {
        return vec![first.text];
    }
    let (mut found, mut depth, mut expects) = (Vec::new(), 0_usize, false);
    for token in &tokens[at..] {
        match token.text {
            "{" => {
                depth += 1;
                expects = depth == 1;
            }
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            "," => expects = depth == 1,
            word if expects => {
                found.push(word);
                expects = false;
            }
            _ => {}
        }
    }
    found
}

/// A foreign crate named where it has no business.
fn foreign(table: &Table, module: &Module<'_>, tokens: &[Token<'_>], at: usize) -> Option<String> {
    let name = tokens[at].text;
    let before = at.checked_sub(1).map(|at| tokens[at].text);
    let after = tokens.get(at + 1).map(|token| token.text);
    let is_crate =
        (after == Some("::") && before != Some("::")) || (before == Some("use") && after != Some("::"));
    if !is_crate {
        return None;
    }
    if let Some((_, doors)) = DOORS.iter().find(|(foreign, _)| *foreign == name)
        && !doors.contains(&module.top)
    {
        return Some(format!(
            "`{name}` stops at its door ({}): convert to our own types there",
            doors.join(", ")
        ));
    }
    let floor = table.floor(module.top);
    let pure = PURE_FLOORS.contains(&floor) && IMPURE.contains(&name);
    pure.then(|| format!("floor {floor} is pure and has no `{name}`: do that on a higher floor"))
}

fn declared_module(line: &str) -> Option<&str> {
    line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("mod "))?.strip_suffix(';')
}

/// Foreign crates, and the modules whose own they are.
const DOORS: [(&str, &[&str]); 8] = [
    ("aya", &["kernel"]),
    ("aya_log", &["kernel"]),
    ("aya_obj", &["kernel"]),
    ("k8s_openapi", &["discovery"]),
    ("kube", &["discovery"]),
    ("signet_apiserver", &["discovery"]),
    ("tonic", &["svid", "discovery"]),
    ("signet_proto", &["svid", "discovery"]),
];
/// Floors that test in milliseconds anywhere.
const PURE_FLOORS: [usize; 2] = [1, 2];
const IMPURE: [&str; 8] =
    ["tokio", "tokio_util", "tokio_rustls", "aya", "kube", "signet_apiserver", "tonic", "rustls"];

#[cfg(test)]
mod tests;
