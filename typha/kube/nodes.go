package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// Nodes writes the one condition of Kubernetes nodes that a network has to write.
type Nodes struct{ core rest.Interface }

// NewNodes returns a Nodes.
func NewNodes(a API) (*Nodes, error) {
	core, err := a.client(corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	return &Nodes{core: core}, nil
}

// SetUnavailable writes the condition NetworkUnavailable, if it says something else. A node that is not there is no error.
func (n *Nodes) SetUnavailable(ctx context.Context, node string, unavailable bool, reason, message string) error {
	var stored corev1.Node
	err := n.core.Get().Resource("nodes").Name(node).VersionedParams(&metav1.GetOptions{}, metav1.ParameterCodec).
		Timeout(requestTimeout).Do(ctx).Into(&stored)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	status := corev1.ConditionFalse
	if unavailable {
		status = corev1.ConditionTrue
	}
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	want := corev1.NodeCondition{
		Type: corev1.NodeNetworkUnavailable, Status: status, Reason: reason, Message: message, LastHeartbeatTime: now, LastTransitionTime: now,
	}
	for _, c := range stored.Status.Conditions {
		if c.Type != corev1.NodeNetworkUnavailable || c.Status != status {
			continue
		}
		if c.Reason == reason {
			return nil
		}
		want.LastTransitionTime = c.LastTransitionTime
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{want}}})
	if err != nil {
		return err
	}
	err = n.core.Patch(types.StrategicMergePatchType).Resource("nodes").Name(node).SubResource("status").Body(patch).
		Timeout(requestTimeout).Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("condition NetworkUnavailable of node %s: %w", node, err)
	}
	return nil
}
