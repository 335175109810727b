package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/internal/backoff"
	"github.com/muslin-net/muslin/internal/kubefollow"
	"github.com/muslin-net/muslin/typha/authority"
)

// The keys of the Secret with the CA; the ConfigMap has the first.
const (
	keyCerts = "ca.crt"
	keyCAKey = "ca.key"
)

// Authority brings the CA from a Secret, and publishes its certificates in a ConfigMap of the same name, from which nodes have
// them. The first typha makes the Secret.
type Authority struct {
	core            rest.Interface
	namespace, name string
	api             API

	now authority.CA // the one that was told last
}

// NewAuthority returns an Authority; nothing is asked before its methods are called.
func NewAuthority(a API, namespace, name string) (*Authority, error) {
	core, err := a.client(corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	return &Authority{core: core, namespace: namespace, name: name, api: a.about("secret", name)}, nil
}

// Get returns the CA once it is there and published. Whatever stands in the way is waited for, until ctx ends.
func (a *Authority) Get(ctx context.Context, take func(authority.CA) error) error {
	return a.retry(ctx, func() error { return a.settle(ctx, take) })
}

// Run follows the Secret until ctx ends: each CA that somebody puts there is taken and published. If the Secret goes it is made
// again, so that a typha that starts has the same CA. It is called after Get.
func (a *Authority) Run(ctx context.Context, take func(authority.CA) error) error {
	news := make(chan struct{}, 1)
	told := func(kubefollow.Told[struct{}]) error {
		select {
		case news <- struct{}{}:
		default:
		}
		return nil
	}
	ended := make(chan error, 1)
	go func() {
		ended <- kubefollow.Follower[struct{}]{
			Client: a.core, Resource: "secrets", Namespace: a.namespace, Name: a.name, Log: a.api.Log, Tell: told, Trouble: a.api.troubleOf("the CA's secret"),
			List: func() runtime.Object { return &corev1.SecretList{} },
			Slim: func(o runtime.Object) (string, *struct{}) { return o.(*corev1.Secret).Name, &struct{}{} },
		}.Run(ctx)
	}()
	for {
		select {
		case err := <-ended:
			if ctx.Err() != nil {
				return nil
			}
			return err
		case <-news:
			if err := a.retry(ctx, func() error { return a.settle(ctx, take) }); err != nil {
				return errors.Join(<-ended, nil) // ctx has ended
			}
		}
	}
}

// retry does something until it succeeds; the error is that of ctx.
func (a *Authority) retry(ctx context.Context, do func() error) error {
	wait := backoff.Backoff{Min: 200 * time.Millisecond, Max: 10 * time.Second}
	for {
		err := do()
		a.api.tell("the CA", err)
		if err == nil {
			return nil
		}
		if err := wait.Wait(ctx); err != nil {
			return err
		}
	}
}

// settle reads the CA, makes it if there is none, has it taken, and publishes it.
func (a *Authority) settle(ctx context.Context, take func(authority.CA) error) error {
	ca, err := a.present(ctx)
	if err != nil {
		return err
	}
	if err := take(ca); err != nil {
		return fmt.Errorf("secret %s/%s: %w; correct it, or delete it to have a new CA made", a.namespace, a.name, err)
	}
	a.now = ca
	return a.publish(ctx, ca.Certs)
}

// present is the CA of the Secret. One that is absent, or was made empty by whoever installed typha, gets the CA that this typha
// has, or a new one; of several replicas that do so the first has its way.
func (a *Authority) present(ctx context.Context) (authority.CA, error) {
	var stored corev1.Secret
	err := a.get(ctx, "secrets", &stored)
	switch {
	case err == nil && len(stored.Data[keyCerts])+len(stored.Data[keyCAKey]) > 0:
		return authority.CA{Certs: stored.Data[keyCerts], Key: stored.Data[keyCAKey]}, nil
	case err != nil && !apierrors.IsNotFound(err):
		return authority.CA{}, fmt.Errorf("secret %s/%s with the CA: %w", a.namespace, a.name, err)
	}
	ca := a.now
	if ca.Key == nil {
		var made error
		if ca, made = authority.New(time.Now()); made != nil {
			return authority.CA{}, made
		}
	}
	data := map[string][]byte{keyCerts: ca.Certs, keyCAKey: ca.Key}
	if err == nil {
		stored.Data = data
		err = a.core.Put().Namespace(a.namespace).Resource("secrets").Name(a.name).Body(&stored).Timeout(requestTimeout).Do(ctx).Error()
	} else {
		fresh := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: a.name}, Data: data}
		err = a.core.Post().Namespace(a.namespace).Resource("secrets").Body(fresh).Timeout(requestTimeout).Do(ctx).Error()
	}
	switch {
	case apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err):
		return a.present(ctx) // another replica was faster
	case err != nil:
		return authority.CA{}, fmt.Errorf("making secret %s/%s with the CA: %w", a.namespace, a.name, err)
	}
	a.api.Log.Info("made the CA of the cluster", "again", a.now.Key != nil)
	return ca, nil
}

// publish puts the certificates where nodes find them.
func (a *Authority) publish(ctx context.Context, certs []byte) error {
	var stored corev1.ConfigMap
	err := a.get(ctx, "configmaps", &stored)
	switch {
	case apierrors.IsNotFound(err):
		fresh := &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: a.name}, Data: map[string]string{keyCerts: string(certs)},
		}
		err = a.core.Post().Namespace(a.namespace).Resource("configmaps").Body(fresh).Timeout(requestTimeout).Do(ctx).Error()
	case err == nil && stored.Data[keyCerts] != string(certs):
		if stored.Data == nil {
			stored.Data = map[string]string{}
		}
		stored.Data[keyCerts] = string(certs)
		err = a.core.Put().Namespace(a.namespace).Resource("configmaps").Name(a.name).Body(&stored).Timeout(requestTimeout).Do(ctx).Error()
	}
	switch {
	case apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err):
		return a.publish(ctx, certs) // what the other replica wrote may be older
	case err != nil:
		return fmt.Errorf("publishing the CA's certificates in configmap %s/%s: %w", a.namespace, a.name, err)
	}
	return nil
}

func (a *Authority) get(ctx context.Context, resource string, into runtime.Object) error {
	return a.core.Get().Namespace(a.namespace).Resource(resource).Name(a.name).VersionedParams(&metav1.GetOptions{}, metav1.ParameterCodec).
		Timeout(requestTimeout).Do(ctx).Into(into)
}
