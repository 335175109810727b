package scale

import (
	"context"
	"slices"
	"time"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/views"
)

// whole is typha's own client, with or without a felix behind it.
type whole struct {
	client *client.Client
	noted  *notes
	felix  *felix // nil without
}

func newWhole(address string, files rpc.Files, s ClientSpec) (*whole, error) {
	c, err := client.New(client.Config{
		Addresses: []string{address}, Files: files, Node: s.Node, View: client.NodeView, StatePath: s.State,
		SaveDelay: time.Hour, // the end saves: all nodes of a cluster have a disk each, these have one together
		SetDeltas: true, Log: quiet,
	})
	if err != nil {
		return nil, err
	}
	w := &whole{client: c, noted: newNotes()}
	if s.Kind == Felix {
		w.felix = newFelix(s)
	}
	return w, nil
}

func (w *whole) notes() *notes { return w.noted }

func (w *whole) run(ctx context.Context) error {
	defer w.client.Close()
	if w.felix != nil {
		done := w.felix.start(ctx)
		defer done()
	}
	return w.client.Run(ctx, w)
}

// OnBatch notes what a batch tells, and programs it.
func (w *whole) OnBatch(b client.Batch) {
	tells := w.noted.take(b.Batch)
	applied := func() {
		b.Applied()
		w.noted.programmed(tells)
		if b.InSync && !b.Saved {
			w.noted.inSync()
		}
	}
	if w.felix == nil {
		applied()
		return
	}
	w.felix.program(b.Batch, applied)
}

// OnQuery answers nobody.
func (w *whole) OnQuery(context.Context, client.Question, func([]byte) error) error {
	return client.ErrUnserved
}

// changedMembers are a set's members after a delta.
func changedMembers(members []view.Member, d view.IPSetDelta) []view.Member {
	out := slices.DeleteFunc(slices.Clone(members), func(m view.Member) bool { return slices.Contains(d.Removed, m) })
	for _, m := range d.Added {
		i, _ := slices.BinarySearchFunc(out, m, views.CompareMembers)
		out = slices.Insert(out, i, m)
	}
	return out
}

// differ calls tell with what is in one of two sorted lists only.
func differ(a, b []view.Member, tell func(view.Member)) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && views.CompareMembers(a[0], b[0]) < 0:
			tell(a[0])
			a = a[1:]
		case len(a) == 0 || views.CompareMembers(a[0], b[0]) > 0:
			tell(b[0])
			b = b[1:]
		default:
			a, b = a[1:], b[1:]
		}
	}
}
