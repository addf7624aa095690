//! Made-up traces with the shape of real ones.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use kvstrata_core::{Error, Result};

use super::Request;
use crate::rng::Rng;

/// The settings of a made-up trace: dialogues that start as a Poisson process, each behind one of a few shared system
/// prompts, growing turn by turn; and one-off prompts that share nothing. The same settings make the same trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Synthetic {
    /// What everything random is drawn from.
    pub seed: u64,
    /// How many requests there are.
    pub requests: usize,
    /// Tokens per block; 512 in the published traces.
    pub block_tokens: u64,
    /// The mean wait between two dialogues or one-off prompts, in milliseconds.
    pub arrival_ms: u64,
    /// How many system prompts there are; the first is the most common.
    pub system_prompts: u64,
    /// The most blocks of a system prompt.
    pub system_blocks: u64,
    /// How many in a hundred arrivals are one-off prompts.
    pub one_off_percent: u64,
    /// The mean number of turns of a dialogue.
    pub turns: u64,
    /// The mean wait between an answer and the next turn, in milliseconds.
    pub think_ms: u64,
    /// The mean tokens that a user adds per turn.
    pub user_tokens: u64,
    /// The mean tokens of an answer.
    pub output_tokens: u64,
    /// The longest prompt in tokens; a dialogue ends before it.
    pub max_input_tokens: u64,
}

impl Default for Synthetic {
    fn default() -> Self {
        Self {
            seed: 1,
            requests: 1000,
            block_tokens: 512,
            arrival_ms: 400,
            system_prompts: 8,
            system_blocks: 6,
            one_off_percent: 20,
            turns: 5,
            think_ms: 20_000,
            user_tokens: 900,
            output_tokens: 300,
            max_input_tokens: 32_768,
        }
    }
}

impl Synthetic {
    /// The requests, in the order of their arrival. Block numbers count up from 0 in the order of first use.
    ///
    /// # Errors
    /// `Invalid` if a setting that must be above 0 is 0, or the percentage is above 100, or prompts could not hold a
    /// system prompt and one more block.
    pub fn generate(&self) -> Result<impl Iterator<Item = Request> + use<>> {
        const OP: &str = "make trace";
        for (field, n) in [
            ("block_tokens", self.block_tokens),
            ("arrival_ms", self.arrival_ms),
            ("system_prompts", self.system_prompts),
            ("turns", self.turns),
            ("user_tokens", self.user_tokens),
            ("output_tokens", self.output_tokens),
        ] {
            if n == 0 || n > 1 << 32 {
                return Err(Error::invalid(OP, "the setting is from 1 to 2^32").with(field, n));
            }
        }
        if self.one_off_percent > 100 {
            return Err(Error::invalid(OP, "a percentage is from 0 to 100")
                .with("one_off_percent", self.one_off_percent));
        }
        let least = self.system_blocks.checked_add(2).and_then(|n| n.checked_mul(self.block_tokens));
        if least.is_none_or(|least| self.max_input_tokens < least) {
            return Err(Error::invalid(
                OP,
                "the longest prompt holds the longest system prompt and two blocks more",
            )
            .with("max_input_tokens", self.max_input_tokens)
            .with("system_blocks", self.system_blocks));
        }
        let mut rng = Rng::new(self.seed);
        let systems = (0..self.system_prompts)
            .map(|i| System { name: i, blocks: rng.below(self.system_blocks + 1) })
            .collect();
        let first = rng.exponential(self.arrival_ms);
        Ok(Making {
            left: self.requests,
            settings: self.clone(),
            rng,
            systems,
            next_arrival: first,
            arrivals: 0,
            waiting: BinaryHeap::new(),
            numbers: BTreeMap::new(),
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct System {
    name: u64,
    blocks: u64,
}

/// A dialogue that waits for its next turn.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Turn {
    at: u64,
    dialogue: u64,
    number: u64,
    turns: u64,
    system: u64,
    system_blocks: u64,
    /// Tokens of the whole prompt.
    input: u64,
}

/// What a block holds, before it gets its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Block {
    System {
        name: u64,
        at: u64,
    },
    Dialogue {
        dialogue: u64,
        at: u64,
    },
    /// The last block of a prompt, not full: the next turn fills it with something else behind it.
    Tail {
        dialogue: u64,
        turn: u64,
    },
}

#[derive(Debug)]
struct Making {
    settings: Synthetic,
    left: usize,
    rng: Rng,
    systems: Vec<System>,
    next_arrival: u64,
    arrivals: u64,
    waiting: BinaryHeap<Reverse<Turn>>,
    numbers: BTreeMap<Block, u64>,
}

impl Making {
    fn arrive(&mut self) {
        let Self { settings: s, rng, .. } = self;
        let one_off = rng.percent(s.one_off_percent);
        // Drawn twice, the smaller counts: the first prompts are the most common.
        let pick = rng.below(s.system_prompts).min(rng.below(s.system_prompts));
        let system = if one_off { System { name: u64::MAX, blocks: 0 } } else { self.systems[pick as usize] };
        let turns = if one_off { 1 } else { 1 + rng.exponential(s.turns - 1) };
        let added = 1 + rng.exponential(s.user_tokens) * if one_off { 4 } else { 1 };
        let input = (system.blocks * s.block_tokens + added).min(s.max_input_tokens);
        self.waiting.push(Reverse(Turn {
            at: self.next_arrival,
            dialogue: self.arrivals,
            number: 0,
            turns,
            system: system.name,
            system_blocks: system.blocks,
            input,
        }));
        self.arrivals += 1;
        self.next_arrival += rng.exponential(s.arrival_ms);
    }

    fn blocks(&mut self, turn: &Turn) -> Vec<u64> {
        let full = turn.input / self.settings.block_tokens;
        let tail = !turn.input.is_multiple_of(self.settings.block_tokens);
        let blocks = (0..full)
            .map(|at| match at < turn.system_blocks {
                true => Block::System { name: turn.system, at },
                false => Block::Dialogue { dialogue: turn.dialogue, at },
            })
            .chain(tail.then_some(Block::Tail { dialogue: turn.dialogue, turn: turn.number }));
        let mut ids = Vec::new();
        for block in blocks {
            let next = self.numbers.len() as u64;
            ids.push(*self.numbers.entry(block).or_insert(next));
        }
        ids
    }
}

impl Iterator for Making {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        self.left = self.left.checked_sub(1)?;
        while self.waiting.peek().is_none_or(|Reverse(turn)| turn.at > self.next_arrival) {
            self.arrive();
        }
        let Reverse(turn) = self.waiting.pop()?;
        let output_length = 1 + self.rng.exponential(self.settings.output_tokens);
        let request = Request {
            timestamp: turn.at,
            input_length: turn.input,
            output_length,
            hash_ids: self.blocks(&turn),
        };
        let input = turn.input + output_length + 1 + self.rng.exponential(self.settings.user_tokens);
        if turn.number + 1 < turn.turns && input <= self.settings.max_input_tokens {
            let at = turn.at + 1 + self.rng.exponential(self.settings.think_ms);
            self.waiting.push(Reverse(Turn { at, input, number: turn.number + 1, ..turn }));
        }
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_same_seed_is_the_same_bytes_and_another_is_not() {
        let bytes = |seed| {
            let mut out = Vec::new();
            super::super::write(
                &mut out,
                Synthetic { seed, requests: 200, ..Default::default() }.generate().unwrap(),
            )
            .unwrap();
            out
        };
        assert_eq!(bytes(5), bytes(5));
        assert_ne!(bytes(5), bytes(6));
        let read: Vec<Request> = super::super::Reader::new(&bytes(5)[..]).collect::<Result<_>>().unwrap();
        let made = Synthetic { seed: 5, requests: 200, ..Default::default() }.generate().unwrap();
        assert_eq!(read, made.collect::<Vec<_>>());
    }

    #[test]
    fn a_trace_has_the_shape_of_a_real_one() {
        let s = Synthetic { requests: 3000, ..Default::default() };
        let all: Vec<Request> = s.generate().unwrap().collect();
        assert_eq!(all.len(), 3000);
        assert!(all.is_sorted_by_key(|r| r.timestamp));
        let (mut seen, mut hits, mut blocks, mut next) = (HashSet::new(), 0, 0, 0);
        for r in &all {
            assert_eq!(r.hash_ids.len() as u64, r.input_length.div_ceil(s.block_tokens));
            assert!(r.input_length <= s.max_input_tokens && r.output_length > 0);
            let known = r.hash_ids.iter().take_while(|id| seen.contains(*id)).count();
            for id in &r.hash_ids[known..] {
                assert!(seen.insert(*id), "a block is known only behind a known prefix");
                assert_eq!((*id, next), (next, *id), "numbers count up in the order of first use");
                next += 1;
            }
            hits += known;
            blocks += r.hash_ids.len();
        }
        let percent = hits * 100 / blocks;
        assert!((40..90).contains(&percent), "{percent} % of the blocks were seen before");
    }

    #[test]
    fn impossible_settings_are_named() {
        let d = Synthetic::default();
        for (s, field) in [
            (Synthetic { block_tokens: 0, ..d.clone() }, "block_tokens"),
            (Synthetic { turns: 0, ..d.clone() }, "turns"),
            (Synthetic { one_off_percent: 101, ..d.clone() }, "one_off_percent"),
            (Synthetic { max_input_tokens: 4095, ..d.clone() }, "max_input_tokens"),
            (Synthetic { system_blocks: u64::MAX, ..d.clone() }, "max_input_tokens"),
        ] {
            let e = s.generate().map(|_| ()).unwrap_err();
            assert_eq!(e.context().next().unwrap().0, field, "{e}");
        }
        assert_eq!(Synthetic { requests: 0, ..d }.generate().unwrap().count(), 0);
    }
}
