//! Generates deflate streams that no compressor would write: codes of any shape, matches of any length and distance, blocks
//! of any length (RFC 1951). Each stream comes with its decoded content.

use crate::input::Input;

/// Packs bits into bytes, least significant bit first.
#[derive(Debug, Default)]
struct BitWriter {
    bytes: Vec<u8>,
    used: usize,
}

impl BitWriter {
    /// Writes the low `count` bits of `value`, lowest bit first.
    fn put(&mut self, value: u32, count: usize) {
        for bit in 0..count {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let last = self.bytes.last_mut().expect("a byte was pushed for the first bit");
            *last |= u8::from(value >> bit & 1 == 1) << (self.used % 8);
            self.used += 1;
        }
    }

    /// Writes a Huffman code, highest bit first (RFC 1951, 3.1.1).
    fn code(&mut self, (code, length): (u32, usize)) {
        (0..length).rev().for_each(|bit| self.put(code >> bit & 1, 1));
    }

    fn align(&mut self) {
        self.used = self.bytes.len() * 8;
    }
}

/// Assigns canonical codes to symbols, given the code lengths (RFC 1951, 3.2.2).
fn canonical_codes(lengths: &[usize]) -> Vec<(u32, usize)> {
    let mut codes = vec![(0, 0); lengths.len()];
    let mut next = 0;
    for length in 1..=15 {
        next <<= 1;
        for (symbol, _) in lengths.iter().enumerate().filter(|(_, own)| **own == length) {
            codes[symbol] = (next, length);
            next += 1;
        }
    }
    codes
}

/// Chooses code lengths of at most `max_length` that form a complete code. Splits leaves of a binary tree until there is one
/// leaf for each symbol.
fn code_lengths(input: &mut Input<'_>, symbols: &[usize], alphabet: usize, max_length: usize) -> Vec<usize> {
    let mut leaves = vec![0];
    while leaves.len() < symbols.len() {
        let deep = input.one_in(2);
        let splittable = leaves.iter().enumerate().filter(|(_, depth)| **depth < max_length);
        let chosen = if deep {
            splittable.max_by_key(|(_, depth)| **depth)
        } else {
            splittable.min_by_key(|(_, depth)| **depth)
        };
        let (at, depth) =
            chosen.map(|(at, depth)| (at, *depth)).expect("a code of 15 bits has room for all symbols");
        leaves[at] = depth + 1;
        leaves.push(depth + 1);
    }
    let mut lengths = vec![0; alphabet];
    // A code with a single symbol has one bit and stays incomplete.
    symbols.iter().zip(leaves).for_each(|(symbol, depth)| lengths[*symbol] = depth.max(1));
    lengths
}

/// Returns the symbol for a match length, the value of its extra bits, and their number.
fn length_symbol(length: usize) -> (usize, u32, usize) {
    // The shortest length of each symbol from 257 on. The last symbol encodes 258 only.
    const FIRST: [usize; 29] = [
        3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163,
        195, 227, 258,
    ];
    let at = FIRST.iter().rposition(|first| *first <= length).expect("lengths start at 3");
    let extra = if (8..28).contains(&at) { (at - 4) / 4 } else { 0 };
    (257 + at, u32::try_from(length - FIRST[at]).expect("extra bits encode less than 32"), extra)
}

/// Returns the symbol for a match distance, the value of its extra bits, and their number.
fn distance_symbol(distance: usize) -> (usize, u32, usize) {
    let extra_of = |symbol: usize| (symbol / 2).saturating_sub(1);
    let first_of = |symbol: usize| match symbol {
        0..=3 => symbol + 1,
        _ => 1 + ((2 + symbol % 2) << extra_of(symbol)),
    };
    let symbol = (0..30).rev().find(|symbol| first_of(*symbol) <= distance).expect("distances start at 1");
    let rest = u32::try_from(distance - first_of(symbol)).expect("extra bits encode less than 8192");
    (symbol, rest, extra_of(symbol))
}

/// One element of a compressed block. `Match` holds length and distance.
enum Token {
    Literal(u8),
    Match(usize, usize),
}

fn tokens(input: &mut Input<'_>, out: &mut Vec<u8>) -> Vec<Token> {
    let mut tokens = Vec::new();
    for _ in 0..input.below(40) {
        match input.below(4) {
            0 => input.chunk().iter().take(20).for_each(|byte| {
                tokens.push(Token::Literal(*byte));
                out.push(*byte);
            }),
            kind if !out.is_empty() => {
                let length = if kind == 1 { 258 } else { 3 + input.below(256) };
                let most = out.len().min(32 << 10);
                let distance = match kind {
                    3 => most - input.below(most.min(4)),
                    _ => 1 + input.below(most),
                };
                tokens.push(Token::Match(length, distance));
                for _ in 0..length {
                    out.push(out[out.len() - distance]);
                }
            }
            _ => {
                let byte = input.byte();
                tokens.push(Token::Literal(byte));
                out.push(byte);
            }
        }
    }
    tokens
}

fn put_tokens(bits: &mut BitWriter, tokens: &[Token], literals: &[(u32, usize)], distances: &[(u32, usize)]) {
    for token in tokens {
        match *token {
            Token::Literal(byte) => bits.code(literals[usize::from(byte)]),
            Token::Match(length, distance) => {
                let (symbol, rest, extra) = length_symbol(length);
                bits.code(literals[symbol]);
                bits.put(rest, extra);
                let (symbol, rest, extra) = distance_symbol(distance);
                bits.code(distances[symbol]);
                bits.put(rest, extra);
            }
        }
    }
    bits.code(literals[256]);
}

fn fixed_block(bits: &mut BitWriter, input: &mut Input<'_>, out: &mut Vec<u8>) {
    let lengths: Vec<usize> = (0..288)
        .map(|symbol| match symbol {
            0..144 => 8,
            144..256 => 9,
            256..280 => 7,
            _ => 8,
        })
        .collect();
    let tokens = tokens(input, out);
    put_tokens(bits, &tokens, &canonical_codes(&lengths), &canonical_codes(&[5; 30]));
}

fn dynamic_block(bits: &mut BitWriter, input: &mut Input<'_>, out: &mut Vec<u8>) {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let tokens = tokens(input, out);
    let mut used = std::collections::BTreeSet::from([256]);
    let mut distances = std::collections::BTreeSet::new();
    for token in &tokens {
        match *token {
            Token::Literal(byte) => drop(used.insert(byte.into())),
            Token::Match(length, distance) => {
                used.insert(length_symbol(length).0);
                distances.insert(distance_symbol(distance).0);
            }
        }
    }
    // Some symbols get a code but do not occur in the block.
    for _ in 0..input.below(30) {
        used.insert(input.below(286));
        distances.insert(input.below(30));
    }
    // Only the distance code may be incomplete, with a single symbol (RFC 1951, 3.2.7).
    if used.len() == 1 {
        used.insert(0);
    }
    let used: Vec<usize> = used.into_iter().collect();
    let distances: Vec<usize> = distances.into_iter().collect();
    let literal_lengths = code_lengths(input, &used, 286, 15);
    let distance_lengths = match distances.len() {
        0 => vec![0; 1],
        _ => code_lengths(input, &distances, 30, 15),
    };
    let last = |lengths: &[usize]| lengths.iter().rposition(|length| *length > 0).map_or(0, |last| last + 1);
    let (literal_count, distance_count) = (last(&literal_lengths).max(257), last(&distance_lengths).max(1));
    let all: Vec<usize> =
        literal_lengths[..literal_count].iter().chain(&distance_lengths[..distance_count]).copied().collect();
    let run_lengths = runs(&all);
    let symbols: std::collections::BTreeSet<usize> = run_lengths.iter().map(|(symbol, ..)| *symbol).collect();
    let mut symbols: Vec<usize> = symbols.into_iter().collect();
    if symbols.len() == 1 {
        symbols.push(if symbols[0] == 1 { 2 } else { 1 });
    }
    let length_code = code_lengths(input, &symbols, 19, 7);
    let count = ORDER.iter().rposition(|symbol| length_code[*symbol] > 0).map_or(4, |last| (last + 1).max(4));
    let field = |number: usize| u32::try_from(number).expect("the field has at most 5 bits");
    bits.put(field(literal_count - 257), 5);
    bits.put(field(distance_count - 1), 5);
    bits.put(field(count - 4), 4);
    ORDER[..count].iter().for_each(|symbol| bits.put(field(length_code[*symbol]), 3));
    let codes = canonical_codes(&length_code);
    for (symbol, rest, extra) in run_lengths {
        bits.code(codes[symbol]);
        bits.put(rest, extra);
    }
    put_tokens(bits, &tokens, &canonical_codes(&literal_lengths), &canonical_codes(&distance_lengths));
}

/// Encodes code lengths, with repeated lengths as runs (symbols 16 to 18).
fn runs(lengths: &[usize]) -> Vec<(usize, u32, usize)> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < lengths.len() {
        let length = lengths[at];
        let run = lengths[at..].iter().take_while(|other| **other == length).count();
        let rest = |run: usize, shortest: usize| u32::try_from(run - shortest).expect("runs are short");
        match (length, run) {
            (0, 11..) => {
                runs.push((18, rest(run.min(138), 11), 7));
                at += run.min(138);
            }
            (0, 3..) => {
                runs.push((17, rest(run, 3), 3));
                at += run;
            }
            (_, 4..) => {
                runs.push((length, 0, 0));
                runs.push((16, rest((run - 1).min(6), 3), 2));
                at += 1 + (run - 1).min(6);
            }
            _ => {
                runs.push((length, 0, 0));
                at += 1;
            }
        }
    }
    runs
}

/// Generates a stream of up to `max_blocks` blocks. Returns the stream and its decoded content.
pub(crate) fn stream(input: &mut Input<'_>, max_blocks: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut bits, mut out) = (BitWriter::default(), Vec::new());
    for block in (0..=input.below(max_blocks)).rev() {
        bits.put(u32::from(block == 0), 1);
        match input.below(4) {
            0 => {
                bits.put(0, 2);
                bits.align();
                let content = input.content(3000);
                let length = u16::try_from(content.len()).expect("content is at most 3000 bytes");
                bits.bytes.extend_from_slice(&length.to_le_bytes());
                bits.bytes.extend_from_slice(&(!length).to_le_bytes());
                bits.bytes.extend_from_slice(&content);
                bits.align();
                out.extend(content);
            }
            1 => {
                bits.put(1, 2);
                fixed_block(&mut bits, input, &mut out);
            }
            _ => {
                bits.put(2, 2);
                dynamic_block(&mut bits, input, &mut out);
            }
        }
    }
    (bits.bytes, out)
}
