//! Networks: addresses, bridges, packet filter, names, published ports.
