package kube

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
)

// Secrets looks up Secrets of one namespace. Only those that are used are asked for, each by a watch of its own, so that a
// Role may name them. It is an intake.SecretSource.
type Secrets struct {
	*intake.Wanted
	core      rest.Interface
	namespace string
	api       API
}

// NewSecrets returns a Secrets; nothing is asked before something is wanted.
func NewSecrets(a API, namespace string) (*Secrets, error) {
	core, err := a.client(corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	return &Secrets{Wanted: intake.NewWanted(), core: core, namespace: namespace, api: a}, nil
}

// secret is the content of a Secret.
type secret struct{ data map[string][]byte }

// followed is a Secret that is being followed.
type followed struct {
	stop  context.CancelFunc
	known bool
	data  map[string][]byte // nil if there is none
}

// news is what a follower tells of its Secret.
type news struct {
	of   *followed
	data map[string][]byte
}

// Run follows what is wanted until ctx ends or tell fails. A Secret that typha may not read is missing; while one cannot be
// reached it stays what it was.
func (s *Secrets) Run(ctx context.Context, tell func(compute.SecretRef, []byte) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		var wanted []compute.SecretRef
		all := map[string]*followed{}          // by name
		told := map[compute.SecretRef][]byte{} // of those wanted
		heard := make(chan news)
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case n := <-heard:
				n.of.known, n.of.data = true, n.data
			case <-s.Changed():
				var fresh []compute.SecretRef
				wanted, fresh = s.Take()
				maps.DeleteFunc(told, func(ref compute.SecretRef, _ []byte) bool {
					return !slices.Contains(wanted, ref) || slices.Contains(fresh, ref)
				})
				s.follow(ctx, group, all, wanted, heard)
			}
			for _, ref := range wanted {
				f := all[ref.Name]
				if !f.known {
					continue
				}
				now := f.data[ref.Key]
				if was, already := told[ref]; already && bytes.Equal(was, now) && (was == nil) == (now == nil) {
					continue
				}
				if now == nil {
					s.api.Log.Warn("a password is missing: sessions that use it wait until it is there",
						"namespace", s.namespace, "secret", ref.Name, "key", ref.Key)
				}
				told[ref] = now
				if err := tell(ref, now); err != nil {
					return err
				}
			}
		}
	})
	return group.Wait()
}

// follow begins to follow Secrets that are wanted, and ends it for those that no longer are.
func (s *Secrets) follow(ctx context.Context, group *errgroup.Group, all map[string]*followed, wanted []compute.SecretRef, heard chan<- news) {
	for name, f := range all {
		if !slices.ContainsFunc(wanted, func(ref compute.SecretRef) bool { return ref.Name == name }) {
			f.stop()
			delete(all, name)
		}
	}
	for _, ref := range wanted {
		if all[ref.Name] != nil {
			continue
		}
		own, stop := context.WithCancel(ctx)
		f := &followed{stop: stop}
		all[ref.Name] = f
		group.Go(func() error {
			defer stop()
			if err := s.one(own, ref.Name, f, heard); own.Err() == nil {
				return err
			}
			return nil // it is not wanted any more, or all ends
		})
	}
}

// one follows a Secret.
func (s *Secrets) one(ctx context.Context, name string, of *followed, heard chan<- news) error {
	hear := func(data map[string][]byte) error {
		select {
		case heard <- news{of, data}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	follower := &follower[secret]{
		client: s.core, resource: "secrets", namespace: s.namespace, name: name, api: s.api.about("secret", name),
		list: func() runtime.Object { return &corev1.SecretList{} },
		slim: func(o runtime.Object) (string, *secret) {
			s := o.(*corev1.Secret)
			return s.Name, &secret{s.Data}
		},
		tell: func(t intake.Told[secret]) error {
			switch now, changed := t.Changes[name]; {
			case changed && now != nil:
				return hear(now.data)
			case changed || t.InSync:
				return hear(nil)
			}
			return nil
		},
		forbidden: func() error { return hear(nil) },
	}
	if tell := s.api.troubleOf(follower.what()); tell != nil {
		defer tell(nil) // nobody wants it any more
	}
	return follower.run(ctx)
}
