package server

import (
	"context"
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// ensureProfiles makes the profiles of a new endpoint that are named after its CNI network, if they are missing (spec
// §6.2). Profiles of namespaces and service accounts are others' to make.
func (r *reports) ensureProfiles(ctx context.Context, ep *api.WorkloadEndpoint) error {
	for _, name := range ep.Spec.Profiles {
		if strings.HasPrefix(name, "kns.") || strings.HasPrefix(name, "ksa.") || name == api.DefaultAllowProfile().Name {
			continue
		}
		p := networkProfile(name, ep.Spec.Orchestrator)
		if r.known(api.KeyOf(p)) {
			continue
		}
		_, err := r.store.Create(ctx, p)
		if err != nil && !errors.Is(err, datastore.ErrExists) {
			return fmt.Errorf("profile of network %s: %w", name, err)
		}
	}
	return nil
}

// networkProfile allows everything under Kubernetes, whose policies then decide; elsewhere it lets endpoints of one
// network reach each other and everything outside.
func networkProfile(name, orchestrator string) *api.Profile {
	p := &api.Profile{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec.LabelsToApply = map[string]string{name: ""}
	p.Spec.Egress = []api.Rule{{Action: api.Allow}}
	p.Spec.Ingress = []api.Rule{{Action: api.Allow}}
	if orchestrator != api.OrchestratorKubernetes {
		p.Spec.Ingress[0].Source.Selector = "has(" + name + ")"
	}
	return p
}
