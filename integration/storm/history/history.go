// Package history judges what clients were sent. It is given, for each client, the events of its streams in their order, over
// all reconnects and replicas; what was written to the datastore; and at the end what each view must be. It finds
//
//   - a checkpoint, or anything in a view, that goes back in time, also from one replica to the next;
//   - a replica that serves a client an earlier state than the one that the client said it had seen;
//   - a batch of which a half was handed over, or that shows two moments of the datastore at once;
//   - something that the replica sent and the client did not hand over, or that came from nowhere; a version that is not its
//     content's; a client that resumes with something else than it has;
//   - an entry of another node's view;
//   - at the end, whatever is missing.
//
// It is pure: no stream, no clock, no datastore. What it keeps is the present state of each client, not the history, so that
// it can judge a storm of hours while it goes on.
package history

import (
	"fmt"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api/view"
)

// Rule is what a history must keep.
type Rule string

// The rules.
const (
	Forward  Rule = "nothing goes back in time"
	Present  Rule = "no replica serves the past"
	Whole    Rule = "batches are whole"
	Faithful Rule = "what is sent is what is handed over"
	Own      Rule = "no entry of another node's view"
	Complete Rule = "no update is lost"
)

// Fault is a rule that a history breaks.
type Fault struct {
	Node  string
	Rule  Rule
	What  string
	Trace []string // the events before it
}

// String tells the fault and what led to it.
func (f Fault) String() string {
	return fmt.Sprintf("%s: %s: %s\n\t%s", f.Node, f.Rule, f.What, strings.Join(f.Trace, "\n\t"))
}

const (
	traced    = 12 // events that a fault shows
	maxFaults = 20 // that are kept of a client: one leads to others
)

// Client is the history of one client. It is not for concurrent use.
type Client struct {
	node   string
	writes *Writes // nil if they are not known

	held   map[view.Key]Item
	needed map[view.Key]int               // how many held items name it
	marks  map[string]map[view.Key]uint64 // of each object the items that show it
	newest map[string]uint64              // the highest mark ever seen of each object
	seen   view.Checkpoint                // of each source the highest revision ever seen
	point  view.Checkpoint                // what was handed over last

	opened *Opened // the stream's beginning, until its first batch was handed over
	next   gathering

	trace  []string
	faults []Fault
}

// gathering is what a stream brought since the last time something was handed over.
type gathering struct {
	fresh  bool // the replica sends the whole view
	puts   map[view.Key]Item
	drops  map[view.Key]bool
	owed   map[view.Key]bool // sets whose change did not fit, or of which parts are missing
	whole  bool              // the last chunk ended a batch
	point  view.Checkpoint   // its checkpoint
	inSync bool
}

func newGathering() gathering {
	return gathering{puts: map[view.Key]Item{}, drops: map[view.Key]bool{}, owed: map[view.Key]bool{}}
}

// NewClient begins the history of a node's client.
func NewClient(node string, writes *Writes) *Client {
	return &Client{
		node: node, writes: writes, held: map[view.Key]Item{}, needed: map[view.Key]int{},
		marks: map[string]map[view.Key]uint64{}, newest: map[string]uint64{}, seen: view.Checkpoint{}, next: newGathering(),
	}
}

// Faults are those found so far.
func (c *Client) Faults() []Fault { return c.faults }

// Holds tells whether the client's view is exactly this one.
func (c *Client) Holds(want map[view.Key]view.Version) bool {
	if len(c.held) != len(want) {
		return false
	}
	for k, v := range want {
		if it, ok := c.held[k]; !ok || it.Content != v {
			return false
		}
	}
	return true
}

// Finish compares the client's view with what it must be.
func (c *Client) Finish(want map[view.Key]view.Version) {
	for k, v := range want {
		switch it, ok := c.held[k]; {
		case !ok:
			c.fault(Complete, "%v is missing at the end", k)
		case it.Content != v:
			c.fault(Complete, "%v is at another version at the end: %s in place of %s, marks %v", k, it.Content, v, it.Marks)
		}
	}
	for k := range c.held {
		if _, ok := want[k]; !ok {
			c.fault(Complete, "%v is there at the end and should be gone", k)
		}
	}
}

func (c *Client) fault(rule Rule, format string, args ...any) {
	if len(c.faults) < maxFaults {
		c.faults = append(c.faults, Fault{Node: c.node, Rule: rule, What: fmt.Sprintf(format, args...), Trace: slices.Clone(c.trace)})
	}
}

// Take takes the next event.
func (c *Client) Take(e Event) {
	if len(c.trace) == traced {
		c.trace = c.trace[1:]
	}
	c.trace = append(c.trace, e.String())
	switch e := e.(type) {
	case Opened:
		c.open(e)
	case Named:
		c.name(e)
	case Welcomed:
		c.next.fresh = !e.Resumed
		if c.next.fresh {
			c.next.puts, c.next.drops, c.next.owed = map[view.Key]Item{}, map[view.Key]bool{}, map[view.Key]bool{}
		}
	case Sent:
		c.send(e)
	case Handed:
		c.hand(e)
	case Closed:
		c.next, c.opened = newGathering(), nil
	}
}

func (c *Client) open(e Opened) {
	c.next, c.opened = newGathering(), &e
	for source, revision := range c.point {
		if e.Point[source] != revision {
			c.fault(Faithful, "resumes from %v, and was handed over %v last", e.Point, c.point)
			break
		}
	}
	var has view.Digests
	for k, it := range c.held {
		has.Add(k, it.Version)
	}
	if wrong := has.Differing(&e.Digests); len(wrong) > 0 {
		c.fault(Faithful, "says of %d parts that it has something else than it has", len(wrong))
	}
}

func (c *Client) name(e Named) {
	n := 0
	for k, it := range c.held {
		if !slices.Contains(e.Parts, view.PartOf(k)) {
			continue
		}
		if v, ok := e.Have[k]; !ok || v != it.Version {
			c.fault(Faithful, "does not say, or says wrongly, that it has %v", k)
			return
		}
		n++
	}
	if len(e.Have) != n {
		c.fault(Faithful, "says it has %d items in the parts that it was asked about, and has %d", len(e.Have), n)
	}
}

func (c *Client) send(e Sent) {
	g := &c.next
	g.whole = false
	for _, it := range e.Items {
		if it.Owner != "" && it.Owner != c.node {
			c.fault(Own, "%v is node %s's and was sent", it.Key, it.Owner)
		}
		if !e.Skewed && it.Content != (view.Version{}) && it.From == (view.Version{}) && !it.More && !g.parts(it.Key) && it.Content != it.Version {
			c.fault(Faithful, "%v was sent as version %s, and its content is %s", it.Key, it.Version, it.Content)
		}
		g.take(it, c.held)
	}
	for _, k := range e.Removes {
		delete(g.puts, k)
		delete(g.owed, k)
		g.drops[k] = true
	}
	if e.Point == nil {
		return
	}
	g.whole, g.point, g.inSync = true, e.Point, e.InSync
	for source, revision := range c.seen {
		if now, ok := e.Point[source]; ok && now < revision {
			c.fault(Forward, "the checkpoint %v is before %s %d, which was seen", e.Point, source, revision)
		} else if !ok && !isReplica(source) {
			c.fault(Forward, "the checkpoint %v has nothing of %s, of which %d was seen", e.Point, source, revision)
		}
	}
	for source, revision := range e.Point {
		c.seen[source] = max(c.seen[source], revision)
	}
}

// isReplica tells whether a source of checkpoints is a replica's own: the others do not have it.
func isReplica(source string) bool { return strings.HasPrefix(source, "typha/") }

// is tells whether an item is what was sent. A set may have been sent as a change or in parts: its version tells all.
func (it Item) is(sent Item) bool {
	if it.Key.Kind == view.KindIPSet {
		return it.Content == sent.Version
	}
	return it.Content == sent.Content && it.Version == sent.Version
}

// parts tells whether a set came in parts so far: what ends it is not all of it.
func (g *gathering) parts(k view.Key) bool {
	it, ok := g.puts[k]
	return ok && it.More
}

func (g *gathering) take(it Item, held map[view.Key]Item) {
	k := it.Key
	if it.From != (view.Version{}) {
		base, ok := g.puts[k]
		if !ok && !g.fresh && !g.drops[k] {
			base, ok = held[k]
		}
		if !ok || base.Version != it.From || g.owed[k] {
			g.owed[k] = true // the client asks for it anew
			return
		}
	} else {
		delete(g.owed, k)
	}
	delete(g.drops, k)
	if it.More {
		g.owed[k] = true
	}
	g.puts[k] = it
}

func (c *Client) hand(e Handed) {
	g := &c.next
	switch {
	case !g.whole:
		c.fault(Whole, "something is handed over in the middle of a batch")
	case len(g.owed) > 0:
		c.fault(Whole, "something is handed over while %d sets are not whole", len(g.owed))
	case g.fresh && !g.inSync:
		c.fault(Whole, "a part of a whole view is handed over")
	case !samePoint(e.Point, g.point):
		c.fault(Faithful, "%v is handed over as the checkpoint, and %v was sent", e.Point, g.point)
	}
	touched := map[view.Key]bool{}
	objects := map[string]bool{}
	for _, k := range e.Removes {
		c.drop(k, touched, objects)
	}
	for _, it := range e.Updates {
		c.drop(it.Key, touched, objects)
		if as, ok := g.puts[it.Key]; ok { // the version by which the client knows it
			it.Version = as.Version
		}
		c.put(it, touched, objects)
	}
	c.compare(e)
	c.closed(touched)
	c.oneMoment(objects)
	if c.opened != nil {
		c.notThePast()
		c.opened = nil
	}
	c.point = e.Point
	c.next = newGathering()
}

func samePoint(a, b view.Checkpoint) bool {
	if len(a) != len(b) {
		return false
	}
	for source, revision := range a {
		if b[source] != revision {
			return false
		}
	}
	return true
}

func (c *Client) drop(k view.Key, touched map[view.Key]bool, objects map[string]bool) {
	it, ok := c.held[k]
	touched[k] = true
	if !ok {
		return
	}
	delete(c.held, k)
	for _, n := range it.Needs {
		touched[n] = true
		if c.needed[n]--; c.needed[n] == 0 {
			delete(c.needed, n)
		}
	}
	for object := range it.Marks {
		objects[object] = true
		if delete(c.marks[object], k); len(c.marks[object]) == 0 {
			delete(c.marks, object)
		}
	}
}

func (c *Client) put(it Item, touched map[view.Key]bool, objects map[string]bool) {
	if it.Owner != "" && it.Owner != c.node {
		c.fault(Own, "%v is node %s's and was handed over", it.Key, it.Owner)
	}
	c.held[it.Key] = it
	for _, n := range it.Needs {
		touched[n] = true
		c.needed[n]++
	}
	for object, mark := range it.Marks {
		objects[object] = true
		if c.marks[object] == nil {
			c.marks[object] = map[view.Key]uint64{}
		}
		c.marks[object][it.Key] = mark
		if mark != twice && mark < c.newest[object] {
			c.fault(Forward, "%v shows write %d of %s, and write %d was seen", it.Key, mark, object, c.newest[object])
		}
		c.newest[object] = max(c.newest[object], mark)
	}
}

// compare compares what was handed over with what was sent.
func (c *Client) compare(e Handed) {
	g := &c.next
	for k, it := range g.puts {
		if had, ok := c.held[k]; !ok || !had.is(it) {
			c.fault(Faithful, "%v was sent at version %s and is not there like that", k, it.Version)
		}
	}
	for k := range g.drops {
		if _, ok := c.held[k]; ok {
			c.fault(Faithful, "%v was removed and is still there", k)
		}
	}
	for _, it := range e.Updates {
		if _, ok := g.puts[it.Key]; !ok {
			c.fault(Faithful, "%v is handed over and was not sent", it.Key)
		}
	}
	if g.fresh {
		for k := range c.held {
			if _, ok := g.puts[k]; !ok {
				c.fault(Faithful, "%v is not in the whole view that was sent, and is still there", k)
			}
		}
		return
	}
	for _, k := range e.Removes {
		if !g.drops[k] {
			c.fault(Faithful, "the removal of %v is handed over and was not sent", k)
		}
	}
}

// closed looks at what items name: all of that must be there, and of what is only there to be named nothing else may be,
// since it is another node's.
func (c *Client) closed(touched map[view.Key]bool) {
	for k := range touched {
		_, there := c.held[k]
		switch {
		case !there && c.needed[k] > 0:
			c.fault(Whole, "%v is named by %d items and is not there", k, c.needed[k])
		case there && c.needed[k] == 0 && (k.Kind == view.KindIPSet || k.Kind == view.KindPolicy || k.Kind == view.KindPolicyList):
			c.fault(Own, "%v is there and nothing of this node needs it", k)
		}
	}
}

// oneMoment looks at whether objects are shown as of one write by all items.
func (c *Client) oneMoment(objects map[string]bool) {
	for object := range objects {
		var first uint64
		begun := false
		for k, mark := range c.marks[object] {
			if mark == twice || begun && mark != first {
				c.fault(Whole, "%s is shown as of two of its writes at once, by %v and others", object, k)
				break
			}
			first, begun = mark, true
		}
	}
}

// notThePast looks at the first batch of a stream: it must have all that was there where the client said to be. A replica that
// the client has been at before is let off: it knows better than the checkpoint what the client has.
func (c *Client) notThePast() {
	for source := range c.next.point {
		if _, known := c.opened.Point[source]; known && isReplica(source) {
			return
		}
	}
	for source, revision := range c.opened.Point {
		if isReplica(source) {
			continue
		}
		for object, by := range c.marks {
			was := c.writes.asOf(object, revision)
			for k, mark := range by {
				if mark != twice && mark < was {
					c.fault(Present, "%v shows write %d of %s to a client that comes from %s %d, which has write %d", k, mark, object, source, revision, was)
				}
			}
		}
	}
}
