package kube

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/internal/kubefollow"
	"github.com/muslin-net/muslin/typha/intake"
)

// follower follows one kind for the intake; see kubefollow.Follower, whose fields these are.
type follower[T any] struct {
	client    rest.Interface
	resource  string
	namespace string
	name      string
	fields    string
	list      func() runtime.Object
	slim      func(runtime.Object) (name string, o *T)
	tell      func(intake.Told[T]) error
	forbidden func() error
	absent    func(ctx context.Context, err error, known bool) (revision uint64, none bool)
	api       API
}

// what is followed, in words.
func (f *follower[T]) what() string {
	if f.name != "" {
		return f.resource + " " + f.name
	}
	return f.resource
}

// run follows until ctx ends or tell fails.
func (f *follower[T]) run(ctx context.Context) error {
	return kubefollow.Follower[T]{
		Client: f.client, Resource: f.resource, Namespace: f.namespace, Name: f.name, Fields: f.fields, List: f.list, Slim: f.slim,
		Forbidden: f.forbidden, Absent: f.absent, Trouble: f.api.troubleOf(f.what()), Log: f.api.Log,
		Tell: func(t kubefollow.Told[T]) error { return f.tell(intake.Told[T](t)) },
	}.Run(ctx)
}
