package server

import (
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
)

// kindNames are the kinds of item as operators write them, which is as the protocol names them.
var kindNames = map[string]view.Kind{
	"resource": view.KindResource, "secret": view.KindSecret, "node": view.KindNode, "ip_set": view.KindIPSet,
	"policy": view.KindPolicy, "policy_list": view.KindPolicyList, "workload_endpoint": view.KindWorkloadEndpoint,
	"host_endpoint": view.KindHostEndpoint, "route": view.KindRoute, "origination": view.KindOrigination,
}

// parseItem reads an item's name, "kind/id".
func parseItem(text string) (view.Key, error) {
	name, id, ok := strings.Cut(text, "/")
	kind, known := kindNames[name]
	if !ok || !known || id == "" {
		return view.Key{}, status.Errorf(codes.InvalidArgument,
			"%q does not name an item: write kind/id, as in ip_set/s:…, where kind is resource, secret, node, ip_set, policy, "+
				"policy_list, workload_endpoint, host_endpoint, route or origination", text)
	}
	return view.Key{Kind: kind, ID: id}, nil
}

// itemName is the name of an item as parseItem reads it.
func itemName(k view.Key) string {
	for name, kind := range kindNames {
		if kind == k.Kind {
			return name + "/" + k.ID
		}
	}
	return k.ID
}

// explain adds the reasons for an item, and for each item that is a reason its own, until nothing more asks.
func (s *Server) explain(scope views.Scope, k view.Key, answer *typhav1.ExplainItemResponse) {
	seen := map[view.Key]bool{k: true}
	for queue := []view.Key{k}; len(queue) > 0; queue = queue[1:] {
		for _, r := range s.cfg.Views.Explain(scope, queue[0]) {
			because := r.Text
			if r.By != (view.Key{}) {
				because = fmt.Sprintf("%s (%s)", r.Text, itemName(r.By))
				if !seen[r.By] {
					seen[r.By] = true
					queue = append(queue, r.By)
				}
			}
			answer.Reasons = append(answer.Reasons, &typhav1.Reason{
				What: fmt.Sprintf("%s in the %s view of %s", itemName(queue[0]), scope.View, scope.Node), Because: because,
			})
		}
	}
}
