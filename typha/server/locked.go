package server

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api"
)

// unlocked refuses to give addresses out while the datastore is locked. What nodes hold ready they go on giving to pods: that
// was given out before.
func (s *Server) unlocked() error {
	info, ok := s.cfg.Cache.Snapshot().Get(api.Key{Kind: "ClusterInformation", Name: api.DefaultName}).(*api.ClusterInformation)
	if ok && info.Locked() {
		return status.Error(codes.Unavailable, "Calico is currently not ready to process requests: "+
			"the datastore is locked for work on its data; calicoctl datastore migrate unlock ends that")
	}
	return nil
}
