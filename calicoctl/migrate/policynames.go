package migrate

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// tierPrefix is what older versions put before the names of policies of the default tier.
const tierPrefix = api.TierDefault + "."

// Renamed is a policy that has a new name.
type Renamed struct{ From, To api.Key }

// PolicyNames takes the prefix of the default tier from the names of policies that older versions wrote. The new object is there
// before the old one goes: for a moment both are, which changes nothing, since they say the same. It can be run again after a
// failure, and returns what it has renamed also then.
func PolicyNames(ctx context.Context, c datastore.Client) ([]Renamed, error) {
	var done []Renamed
	for _, kind := range []string{"GlobalNetworkPolicy", "NetworkPolicy", "StagedGlobalNetworkPolicy", "StagedNetworkPolicy"} {
		list, err := c.List(ctx, kind, datastore.ListOptions{})
		if err != nil {
			return done, err
		}
		for _, o := range list.Items {
			name, prefixed := strings.CutPrefix(o.GetName(), tierPrefix)
			if tier, _ := api.TierOf(o); !prefixed || tier != api.TierDefault {
				continue
			}
			to, err := renamePolicy(ctx, c, o, name)
			if err != nil {
				return done, err
			}
			done = append(done, Renamed{From: api.KeyOf(o), To: to})
		}
	}
	return done, nil
}

func renamePolicy(ctx context.Context, c datastore.Client, old api.Object, name string) (api.Key, error) {
	o := old.DeepCopyObject().(api.Object)
	o.SetName(name)
	o.SetUID("")
	o.SetResourceVersion("")
	key := api.KeyOf(o)
	_, err := c.Create(ctx, o)
	if errors.Is(err, datastore.ErrExists) {
		var there api.Object
		if there, err = c.Get(ctx, key); err == nil && !sameSpec(there, old) {
			err = fmt.Errorf("%s cannot become %s, which exists and says something else; delete or rename one of the two", api.KeyOf(old), key)
		}
	}
	if err != nil {
		return key, err
	}
	_, err = c.Delete(ctx, api.KeyOf(old), datastore.Precondition{Revision: old.GetResourceVersion(), UID: string(old.GetUID())})
	return key, err
}

// sameSpec tells whether two policies of a kind say the same.
func sameSpec(a, b api.Object) bool {
	spec := func(o api.Object) any {
		o = o.DeepCopyObject().(api.Object)
		o.Default()
		switch o := o.(type) {
		case *api.GlobalNetworkPolicy:
			return o.Spec
		case *api.NetworkPolicy:
			return o.Spec
		case *api.StagedGlobalNetworkPolicy:
			return o.Spec
		case *api.StagedNetworkPolicy:
			return o.Spec
		}
		return nil
	}
	return equality.Semantic.DeepEqual(spec(a), spec(b))
}
