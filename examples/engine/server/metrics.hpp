// Metrics: what the service counted, as the text that Prometheus reads (exposition format 0.0.4).
#pragma once

#include <string>

#include "engine/service.hpp"

namespace engine::server {

std::string metrics_text(const ServiceStats& stats);

}  // namespace engine::server
