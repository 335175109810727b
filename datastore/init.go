package datastore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// Init makes what every cluster must have: the ClusterInformation with the cluster's GUID, the built-in tiers, and a
// FelixConfiguration default, which patches need to be there. That one is empty: it overrules nothing that a narrower or a
// wider setting says. Init changes nothing that is there, completes a ClusterInformation that lacks GUID or readiness, and may
// run in several processes at once.
func Init(ctx context.Context, c Client) error {
	if err := initInformation(ctx, c); err != nil {
		return fmt.Errorf("preparing the datastore: %w", err)
	}
	needed := []api.Object{&api.FelixConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: api.GroupVersion, Kind: "FelixConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: api.DefaultName},
	}}
	for _, t := range api.BuiltinTiers() {
		needed = append(needed, t)
	}
	for _, o := range needed {
		_, err := c.Get(ctx, api.KeyOf(o))
		if errors.Is(err, ErrNotFound) {
			_, err = c.Create(ctx, o)
		}
		if err != nil && !errors.Is(err, ErrExists) {
			return fmt.Errorf("preparing the datastore: %w", err)
		}
	}
	return nil
}

func initInformation(ctx context.Context, c Client) error {
	info := &api.ClusterInformation{
		TypeMeta:   metav1.TypeMeta{APIVersion: api.GroupVersion, Kind: "ClusterInformation"},
		ObjectMeta: metav1.ObjectMeta{Name: api.DefaultName},
	}
	for {
		stored, err := c.Get(ctx, api.KeyOf(info))
		switch {
		case errors.Is(err, ErrNotFound):
			complete(&info.Spec)
			_, err = c.Create(ctx, info)
		case err == nil:
			if have := stored.(*api.ClusterInformation); complete(&have.Spec) {
				_, err = c.Update(ctx, have)
			}
		}
		if !errors.Is(err, ErrExists) && !errors.Is(err, ErrConflict) { // else another process was quicker: look again
			return err
		}
	}
}

// complete fills what is missing, and reports whether that was anything. A cluster whose readiness is false stays so: a
// migration has put it there.
func complete(info *api.ClusterInformationSpec) (changed bool) {
	if info.ClusterGUID == "" {
		info.ClusterGUID = strings.ReplaceAll(uuid.NewString(), "-", "")
		changed = true
	}
	if info.DatastoreReady == nil {
		ready := true
		info.DatastoreReady = &ready
		changed = true
	}
	return changed
}
