package kube

import (
	"context"
	"log/slog"
	"maps"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/internal/kubefollow"
)

// Table is what there is of one kind of objects of Kubernetes, each cut down to what is needed of it. It is a loop.Source; one
// loop at a time follows it.
type Table[T any] struct {
	client   rest.Interface
	resource string
	list     func() runtime.Object
	slim     func(runtime.Object) (name string, o *T)
	trouble  func(resource string, err error)
	log      *slog.Logger

	mu  sync.Mutex // guards the following
	all map[string]*T
}

// Follow keeps the table up to date until ctx ends.
func (t *Table[T]) Follow(ctx context.Context, changed func(complete bool)) error {
	t.mu.Lock()
	t.all = map[string]*T{}
	t.mu.Unlock()
	defer t.trouble(t.resource, nil)
	return kubefollow.Follower[T]{
		Client: t.client, Resource: t.resource, List: t.list, Slim: t.slim, Log: t.log,
		Trouble: func(err error) { t.trouble(t.resource, err) },
		Tell: func(told kubefollow.Told[T]) error {
			t.mu.Lock()
			for name, o := range told.Changes {
				if o == nil {
					delete(t.all, name)
				} else {
					t.all[name] = o
				}
			}
			t.mu.Unlock()
			if told.InSync || len(told.Changes) > 0 {
				changed(told.InSync)
			}
			return nil
		},
	}.Run(ctx)
}

// All returns what there is, by name: "namespace/name" where objects have a namespace. The objects are shared: they are to be
// read.
func (t *Table[T]) All() map[string]*T {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.all)
}
