package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/muslin-net/muslin/kube-controllers/loadbalancer/assign"
)

// ConditionAddresses is the condition of services that is False while a service does not have the addresses that it asks for;
// the message says why. One that has them, or that is another's to serve, does not have it.
const ConditionAddresses = "projectcalico.org/LoadBalancerAddresses"

// reasonNotAssigned is the condition's reason.
const reasonNotAssigned = "NotAssigned"

// Services are the services.
func (a *API) Services() *Table[assign.Service] {
	return table(a, a.core, "services", func() runtime.Object { return &corev1.ServiceList{} }, slimService)
}

func slimService(s *corev1.Service) *assign.Service {
	out := &assign.Service{
		Namespace: s.Namespace, Name: s.Name, UID: string(s.UID), LoadBalancer: s.Spec.Type == corev1.ServiceTypeLoadBalancer,
		LoadBalancerIP: s.Spec.LoadBalancerIP, Annotations: map[string]string{}, Ingress: ingressOf(s), Complaint: complaint(s),
	}
	if s.Spec.LoadBalancerClass != nil {
		out.Class = *s.Spec.LoadBalancerClass
	}
	for _, f := range s.Spec.IPFamilies {
		if f == corev1.IPv4Protocol {
			out.Families = append(out.Families, 4)
		} else {
			out.Families = append(out.Families, 6)
		}
	}
	for _, name := range []string{assign.AnnotationPools4, assign.AnnotationPools6, assign.AnnotationAddresses} {
		if v := s.Annotations[name]; v != "" {
			out.Annotations[name] = v
		}
	}
	return out
}

// ingressOf is what a service's status shows.
func ingressOf(s *corev1.Service) (list []string) {
	for _, i := range s.Status.LoadBalancer.Ingress {
		if i.IP != "" {
			list = append(list, i.IP)
		} else {
			list = append(list, i.Hostname)
		}
	}
	return list
}

func complaint(s *corev1.Service) string {
	if c := meta.FindStatusCondition(s.Status.Conditions, ConditionAddresses); c != nil {
		return c.Message
	}
	return ""
}

// Service reads one service from the API server; nil if there is none.
func (a *API) Service(ctx context.Context, namespace, name string) (*assign.Service, error) {
	s, err := a.service(ctx, namespace, name)
	if s == nil || err != nil {
		return nil, err
	}
	return slimService(s), nil
}

func (a *API) service(ctx context.Context, namespace, name string) (*corev1.Service, error) {
	s := &corev1.Service{}
	err := a.core.Get().Namespace(namespace).Resource("services").Name(name).Timeout(requestTimeout).Do(ctx).Into(s)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("service %s/%s of Kubernetes: %w", namespace, name, err)
	}
	return s, nil
}

// ShowService makes these the addresses in a service's status, and tells what is wrong in a condition. It writes nothing if
// that is so, or if it is no longer the service of that UID.
func (a *API) ShowService(ctx context.Context, of *assign.Service, ingress []string, wrong error) error {
	text := ""
	if wrong != nil {
		text = wrong.Error()
	}
	if slices.Equal(of.Ingress, ingress) && of.Complaint == text {
		return nil
	}
	if err := a.mayWrite("show the addresses of the service"); err != nil {
		return err
	}
	s, err := a.service(ctx, of.Namespace, of.Name)
	if err != nil || s == nil || string(s.UID) != of.UID {
		return err
	}
	if slices.Equal(ingressOf(s), ingress) && complaint(s) == text {
		return nil
	}
	if !slices.Equal(ingressOf(s), ingress) {
		s.Status.LoadBalancer.Ingress = entries(s.Status.LoadBalancer.Ingress, ingress)
	}
	if meta.RemoveStatusCondition(&s.Status.Conditions, ConditionAddresses); text != "" {
		meta.SetStatusCondition(&s.Status.Conditions, metav1.Condition{
			Type: ConditionAddresses, Status: metav1.ConditionFalse, Reason: reasonNotAssigned, Message: text,
			ObservedGeneration: s.Generation, LastTransitionTime: metav1.NewTime(time.Now().Truncate(time.Second)),
		})
	}
	// With the resourceVersion that was read: it fails if the service has changed meanwhile.
	err = a.core.Put().Namespace(of.Namespace).Resource("services").Name(of.Name).SubResource("status").Timeout(requestTimeout).Body(s).Do(ctx).Error()
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case apierrors.IsConflict(err):
		return errors.New("it was changed meanwhile; trying again")
	}
	return err
}

// entries are those of a status: the ones that it has already, as they are, and new ones.
func entries(has []corev1.LoadBalancerIngress, want []string) (out []corev1.LoadBalancerIngress) {
	for _, text := range want {
		i := slices.IndexFunc(has, func(e corev1.LoadBalancerIngress) bool { return e.IP == text || e.IP == "" && e.Hostname == text })
		if i >= 0 {
			out = append(out, has[i])
		} else {
			out = append(out, corev1.LoadBalancerIngress{IP: text})
		}
	}
	return out
}
