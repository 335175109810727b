package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/internal/kubefollow"
	"github.com/muslin-net/muslin/typha/intake"
)

// Policies follows the cluster-wide policies of Kubernetes, which it keeps as custom resources, if at all. It is an
// intake.PolicySource.
type Policies struct {
	core, admin, cluster rest.Interface
	api                  API
}

// NewPolicies returns a Policies; nothing is asked before its method is called.
func NewPolicies(a API) (*Policies, error) {
	core, err := a.client(corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	admin, err := a.client(schema.GroupVersion(v1alpha1.GroupVersion))
	if err != nil {
		return nil, err
	}
	cluster, err := a.client(schema.GroupVersion(v1alpha2.GroupVersion))
	if err != nil {
		return nil, err
	}
	return &Policies{core: core, admin: admin, cluster: cluster, api: a}, nil
}

// Policies follows those of a kind.
func (p *Policies) Policies(ctx context.Context, kind string, tell func(intake.Told[intake.ClusterPolicy]) error) error {
	f := &follower[intake.ClusterPolicy]{api: p.api, tell: tell}
	switch kind {
	case kubernetes.KindCluster:
		f.client, f.resource = p.cluster, "clusternetworkpolicies"
		f.list = func() runtime.Object { return &v1alpha2.ClusterNetworkPolicyList{} }
		f.slim = translated(kubernetes.ClusterNetworkPolicy)
	case kubernetes.KindAdmin:
		f.client, f.resource = p.admin, "adminnetworkpolicies"
		f.list = func() runtime.Object { return &v1alpha1.AdminNetworkPolicyList{} }
		f.slim = translated(kubernetes.AdminNetworkPolicy)
	case kubernetes.KindBaseline:
		f.client, f.resource = p.admin, "baselineadminnetworkpolicies"
		f.list = func() runtime.Object { return &v1alpha1.BaselineAdminNetworkPolicyList{} }
		f.slim = translated(kubernetes.BaselineAdminNetworkPolicy)
	default:
		return fmt.Errorf("there are no policies of kind %s", kind)
	}
	var strange string // versions of which the log has told
	f.absent = func(ctx context.Context, err error, absent bool) (uint64, bool) {
		// Where it is served in versions only that are not known here there may be policies.
		revision, versions, known := p.whereServed(ctx, f.resource, err, absent)
		if others := strings.Join(versions, ", "); others != "" && others != strange && apierrors.IsNotFound(err) {
			strange = others
			p.api.Log.Warn("policies are served in versions only that are not known here: they cannot be read, and are not ignored; serve "+
				f.client.APIVersion().Version+" too", "resource", f.resource, "versions", others)
		}
		return revision, known && len(versions) == 0
	}
	return f.run(ctx)
}

// translated has objects be policies of ours.
func translated[T metav1.Object](translate func(T) (*api.GlobalNetworkPolicy, error)) func(runtime.Object) (string, *intake.ClusterPolicy) {
	return func(o runtime.Object) (string, *intake.ClusterPolicy) {
		of := o.(T)
		policy, wrong := translate(of)
		return of.GetName(), &intake.ClusterPolicy{Policy: policy, Wrong: wrong}
	}
}

// whereServed finds out in which versions a resource is served, as of a revision, when reading it was refused with an error.
// Who may not read it learns nothing from that, but what is served in any version everyone may ask. It is not known if the
// error or the server says nothing of it. The revision is left out if it was absent before: then it is of no interest.
func (p *Policies) whereServed(ctx context.Context, resource string, refused error, absent bool) (revision uint64, versions []string, known bool) {
	if !apierrors.IsNotFound(refused) && !apierrors.IsForbidden(refused) {
		return 0, nil, false
	}
	// Another kind of the same store tells how far it is. It comes first: what is not served afterwards was not then.
	var services corev1.ServiceList
	if !absent && p.core.Get().Resource("services").VersionedParams(&metav1.ListOptions{Limit: 1}, metav1.ParameterCodec).
		Timeout(requestTimeout).Do(ctx).Into(&services) != nil {
		return 0, nil, false
	}
	versions, err := p.served(ctx, resource)
	return kubefollow.Number(services.ResourceVersion), versions, err == nil
}

// served are the versions in which a resource is served.
func (p *Policies) served(ctx context.Context, resource string) (versions []string, err error) {
	var group metav1.APIGroup
	if err := p.discover(ctx, &group, v1alpha2.GroupName); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return nil, err
	}
	for _, v := range group.Versions {
		var list metav1.APIResourceList
		if err := p.discover(ctx, &list, v1alpha2.GroupName, v.Version); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == resource }) {
			versions = append(versions, v.Version)
		}
	}
	return versions, nil
}

func (p *Policies) discover(ctx context.Context, into any, path ...string) error {
	body, err := p.cluster.Get().AbsPath(append([]string{"/apis"}, path...)...).SetHeader("Accept", runtime.ContentTypeJSON).
		Timeout(requestTimeout).Do(ctx).Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}
