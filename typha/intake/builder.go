package intake

import (
	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/cache"
)

// builder makes one batch out of all messages that are there. Only the last word on each key counts.
type builder struct {
	in     *Intake
	before *cache.Snapshot
	news   map[api.Key]cache.Object // nil values for objects that are gone
	order  []api.Key                // in which the keys came first
	batch  Batch                    // what needs no judging
}

func newBuilder(in *Intake) *builder {
	return &builder{in: in, before: in.cache.Snapshot(), news: map[api.Key]cache.Object{}}
}

// take takes in one message.
func (b *builder) take(m message) {
	if m.kind != "" {
		b.in.now.moved(m.kind, m.delta.Revision, m.delta.Seen, m.delta.InSync)
	}
	for _, c := range m.delta.Changes {
		var o api.Object
		if c.Type != datastore.Deleted {
			o = c.Object
		}
		b.takeObject(c.Key, o)
	}
	b.takeTold(m)
	if m.report != nil {
		endpoints := make(map[api.Key]*cache.Endpoint, len(m.report.endpoints))
		for key, o := range m.report.endpoints {
			endpoints[key] = b.in.slimmer.endpoint(o)
		}
		b.in.overlay.report(m.report.node, endpoints, b.get, b.set)
	}
}

// takeObject takes in what the datastore says of an object.
func (b *builder) takeObject(key api.Key, o api.Object) {
	if !b.in.judge(key, o) {
		o = api.Closed(o)
	}
	if slim := b.in.slimmer.slim(o); b.in.overlay.stored(key, slim) {
		b.set(key, slim)
	}
}

// set says what an object is now.
func (b *builder) set(key api.Key, o cache.Object) {
	if _, again := b.news[key]; !again {
		b.order = append(b.order, key)
	}
	b.news[key] = o
}

// get says what an object is now.
func (b *builder) get(key api.Key) cache.Object {
	if o, ok := b.news[key]; ok {
		return o
	}
	return b.before.Get(key)
}

// build returns the batch of what was taken, without what changes nothing.
func (b *builder) build() Batch {
	batch := b.batch
	batch.Progress = b.in.now.state()
	metrics := b.in.opts.Metrics
	for _, key := range b.order {
		was, now := b.before.Get(key), b.news[key]
		if same(was, now) {
			metrics.updates.WithLabelValues(key.Kind, "unchanged").Inc()
			continue
		}
		switch {
		case was == nil:
			metrics.objects.WithLabelValues(key.Kind).Inc()
		case now == nil:
			metrics.objects.WithLabelValues(key.Kind).Dec()
		}
		metrics.updates.WithLabelValues(key.Kind, "changed").Inc()
		batch.Changes = append(batch.Changes, cache.Change{Key: key, Object: now})
	}
	return batch
}
