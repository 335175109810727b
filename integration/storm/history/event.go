package history

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/muslin-net/muslin/api/view"
)

// Event is one thing that happened between a client and typha, as the client's side of the stream saw it.
type Event interface{ String() string }

// Opened is a stream that the client began: what it said it has, in short, and how far in history it said to be.
type Opened struct {
	Point   view.Checkpoint
	Digests view.Digests
}

// Named is the client's answer to the replica's question of what it has in some parts.
type Named struct {
	Parts []uint8
	Have  map[view.Key]view.Version
}

// Welcomed is the replica's answer: whether it builds on what the client has.
type Welcomed struct{ Resumed bool }

// Sent is a chunk that came from the replica. Point is nil in all chunks of a batch but the last. The versions of a replica of
// another version of the protocol are its own, and not those of what is in its items.
type Sent struct {
	Skewed  bool // the replica is of another version of the protocol
	Batch   uint64
	Items   []Item
	Removes []view.Key
	Point   view.Checkpoint
	InSync  bool
}

// Handed is what the client gave its user to commit.
type Handed struct {
	Updates []Item
	Removes []view.Key
	Point   view.Checkpoint
	InSync  bool
}

// Closed is the end of a stream.
type Closed struct{ Reason string }

func (e Opened) String() string {
	return fmt.Sprintf("opened at %v with items in %d parts", e.Point, len(e.Digests.Differing(&view.Digests{})))
}

func (e Named) String() string {
	return fmt.Sprintf("named %d items in %d parts", len(e.Have), len(e.Parts))
}
func (e Welcomed) String() string { return fmt.Sprintf("welcomed, resumed %t", e.Resumed) }
func (e Closed) String() string   { return "closed: " + e.Reason }

func (e Sent) String() string {
	return fmt.Sprintf("sent batch %d: %s", e.Batch, content(e.Items, e.Removes, e.Point, e.InSync))
}

func (e Handed) String() string {
	return "handed over: " + content(e.Updates, e.Removes, e.Point, e.InSync)
}

func content(items []Item, removes []view.Key, point view.Checkpoint, inSync bool) string {
	const most = 6
	var parts []string
	for _, it := range items[:min(most, len(items))] {
		parts = append(parts, "+"+it.Key.ID)
		for object, mark := range it.Marks {
			parts = append(parts, fmt.Sprintf("%s=%d", object, mark))
		}
	}
	for _, k := range removes[:min(most, len(removes))] {
		parts = append(parts, "-"+k.ID)
	}
	return fmt.Sprintf("%d items, %d removed [%s] at %v, in sync %t", len(items), len(removes), strings.Join(parts, " "), point, inSync)
}

// Item is what matters of an item for judging a history.
type Item struct {
	Key     view.Key
	Version view.Version      // as the sender says
	Content view.Version      // the version of what is in it; zero where that cannot be told from the item alone
	From    view.Version      // of a change of a set: the version that it starts from
	More    bool              // a part of a set, of which more follows
	Owner   string            // the node whose own it is; empty for what many nodes have
	Needs   []view.Key        // what it names; a view that has the item has them too
	Marks   map[string]uint64 // objects of the datastore that it shows, and at which of their writes
}

// Describe is an item of a view without what the sender said of it.
func Describe(it view.Item) Item {
	out := Item{Key: it.Key(), Marks: map[string]uint64{}}
	if d, ok := it.(view.IPSetDelta); ok {
		out.Version, out.From = d.To, d.From
		return out
	}
	out.Content = view.VersionOf(it)
	out.Version = out.Content
	need := func(kind view.Kind, ids ...string) {
		for _, id := range ids {
			if id != "" {
				out.Needs = append(out.Needs, view.Key{Kind: kind, ID: id})
			}
		}
	}
	switch it := it.(type) {
	case view.WorkloadEndpoint:
		out.Owner = OwnerOf(it.ID.Workload)
		need(view.KindPolicyList, it.PolicyList)
		out.mark(it.Key().ID, it.ContainerID)
	case view.HostEndpoint:
		out.Owner = OwnerOf(it.Name)
		need(view.KindPolicyList, it.Normal, it.Untracked, it.PreDNAT, it.Forward)
	case view.PolicyList:
		need(view.KindPolicy, it.Profiles...)
		for _, t := range it.Tiers {
			need(view.KindPolicy, t.Ingress...)
			need(view.KindPolicy, t.Egress...)
		}
	case view.Policy:
		for _, r := range slices.Concat(it.Ingress, it.Egress) {
			for _, m := range []view.Match{r.Source, r.Destination} {
				need(view.KindIPSet, slices.Concat(m.Sets, m.NotSets, m.IPPortSets, m.NamedPorts, m.NotNamedPorts)...)
			}
			out.mark(it.ID, r.Annotations[Annotation])
		}
	case view.IPSet:
		for _, m := range it.Members {
			out.markAddress(m.Prefix.Addr())
		}
	case view.Node:
		if it.IPv6.IsValid() {
			out.markAddress(it.IPv6.Addr())
		}
	}
	return out
}

func (it *Item) mark(object, text string) {
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		it.Marks[object] = n
	}
}
