//! The residents by slot, and the queues they stand in.

use crate::order::Order;
use crate::{Entry, Slot};

/// How many places a walk looks ahead.
const AHEAD: u64 = 2;

/// What every policy keeps of a resident, and `extra`, what this policy adds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node<X> {
    /// 0: the slot is not resident.
    pub(crate) weight: u32,
    pub(crate) pins: u32,
    /// The position in its queue's ring.
    pub(crate) place: u32,
    pub(crate) queue: u32,
    pub(crate) extra: X,
}

/// Nodes by slot number.
#[derive(Debug)]
pub(crate) struct Table<X> {
    nodes: Vec<Node<X>>,
}

impl<X> Table<X> {
    pub(crate) fn node(&mut self, slot: u32) -> &mut Node<X> {
        &mut self.nodes[slot as usize]
    }
}

/// The residents of a policy, each in one of its queues.
#[derive(Debug)]
pub(crate) struct Queues<X> {
    table: Table<X>,
    orders: Vec<Order>,
    weights: Vec<u64>,
    residents: usize,
}

impl<X> Queues<X> {
    /// Residents by slot, with their slots.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (Slot, &Node<X>)> {
        let slots = (0..).map(Slot);
        slots.zip(&self.table.nodes).filter(|(_, node)| node.weight != 0)
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Node<X>> {
        self.table.nodes.get(slot.index()).filter(|node| node.weight != 0)
    }

    /// The weight in a queue.
    pub(crate) fn weight(&self, queue: usize) -> u64 {
        self.weights[queue]
    }

    /// The weight in all queues.
    pub(crate) fn total(&self) -> u64 {
        self.weights.iter().sum()
    }

    /// How many are resident.
    pub(crate) fn len(&self) -> usize {
        self.residents
    }

    /// Adds an empty queue and says its number.
    pub(crate) fn add_queue(&mut self) -> usize {
        self.orders.push(Order::default());
        self.weights.push(0);
        self.orders.len() - 1
    }

    /// A queue itself, and the nodes of its members.
    pub(crate) fn order(&mut self, queue: usize) -> (&mut Order, &mut Table<X>) {
        (&mut self.orders[queue], &mut self.table)
    }
}

impl<X: Clone + Default> Queues<X> {
    pub(crate) fn new(queues: usize) -> Self {
        Self {
            table: Table { nodes: Vec::new() },
            orders: (0..queues).map(|_| Order::default()).collect(),
            weights: vec![0; queues],
            residents: 0,
        }
    }

    /// One queue with groups.
    pub(crate) fn grouped() -> Self {
        Self { orders: vec![Order::grouped()], ..Self::new(1) }
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Node<X>> {
        self.table.nodes.get_mut(slot.index()).filter(|node| node.weight != 0)
    }

    /// Appends a new resident to a queue, unpinned. It must not be resident: `remove` it first.
    pub(crate) fn insert(&mut self, entry: &Entry, queue: usize, extra: X) {
        let index = entry.slot.index();
        if index >= self.table.nodes.len() {
            self.table.nodes.resize(index + 1, Node::default());
        }
        let weight = entry.weight.get();
        let node = Node { weight, pins: 0, place: 0, queue: queue as u32, extra };
        debug_assert_eq!(
            self.table.nodes[index].weight, 0,
            "a resident slot is removed before it is inserted"
        );
        self.table.nodes[index] = node;
        self.orders[queue].push(&mut self.table, entry.slot.0);
        self.weights[queue] += u64::from(weight);
        self.residents += 1;
    }

    /// Makes the newest member of a queue the first of a new group.
    pub(crate) fn begin_group(&mut self, queue: usize) {
        self.orders[queue].begin_group();
    }

    /// Takes a resident out, and says what it was.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Node<X>> {
        let node = self.table.nodes.get_mut(slot.index()).filter(|node| node.weight != 0)?;
        let node = std::mem::take(node);
        self.orders[node.queue as usize].take(&mut self.table, node.place);
        self.weights[node.queue as usize] -= u64::from(node.weight);
        self.residents -= 1;
        Some(node)
    }

    /// Moves a resident to the tail of a queue, its own or another.
    pub(crate) fn append(&mut self, slot: Slot, queue: usize) {
        let Some(node) = self.get_mut(slot) else { return };
        let (from, place, weight) = (node.queue as usize, node.place, u64::from(node.weight));
        node.queue = queue as u32;
        self.orders[from].take(&mut self.table, place);
        self.orders[queue].push(&mut self.table, slot.0);
        if from != queue {
            self.weights[from] -= weight;
            self.weights[queue] += weight;
        }
    }

    pub(crate) fn pin(&mut self, slot: Slot) {
        let Some(node) = self.get_mut(slot) else { return };
        node.pins += 1;
        if node.pins == 1 {
            let (queue, place) = (node.queue as usize, node.place);
            self.orders[queue].hide(place);
        }
    }

    pub(crate) fn unpin(&mut self, slot: Slot) {
        let Some(node) = self.get_mut(slot) else { return };
        if node.pins == 1 {
            let (queue, place) = (node.queue as usize, node.place);
            self.orders[queue].show(place);
        }
        if let Some(node) = self.get_mut(slot) {
            node.pins = node.pins.saturating_sub(1);
        }
    }

    pub(crate) fn rewind(&mut self, queue: usize) {
        self.orders[queue].rewind();
    }

    /// The next unpinned member of a queue's walk, and its weight.
    pub(crate) fn advance(&mut self, queue: usize) -> Option<(Slot, u64)> {
        let slot = self.orders[queue].advance()?;
        // Walks jump about in the table. What is a few places ahead is asked for now, so that it is there in time.
        let ahead = self.orders[queue].ahead(AHEAD);
        std::hint::black_box(self.table.nodes.get(ahead as usize).map_or(0, |node| node.weight));
        Some((Slot(slot), u64::from(self.table.node(slot).weight)))
    }

    /// Proposes members of a queue from its walk until `total` reaches `want`.
    pub(crate) fn drain(&mut self, queue: usize, want: u64, total: &mut u64, out: &mut Vec<Slot>) {
        while *total < want {
            let Some((slot, weight)) = self.advance(queue) else { return };
            out.push(slot);
            *total += weight;
        }
    }

    pub(crate) fn memory(&self) -> usize {
        self.table.nodes.capacity() * size_of::<Node<X>>()
            + self.orders.capacity() * size_of::<Order>()
            + self.weights.capacity() * 8
            + self.orders.iter().map(Order::memory).sum::<usize>()
    }
}
